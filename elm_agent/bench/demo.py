"""The main job end to end: a stream of arithmetic, answered and learned from, told as it happens.

The stream is made from a seed and its order is strict: each question is answered with the bank as it was before
it. The first questions are learned from, until the number of memories asked for is reached; references are used
for counting only. Knows nothing of terminals: what happens is told to an observer.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elm_agent.bench.plots import draw_stream
from elm_agent.bench.results import ResultsFile
from elm_agent.bench.stream_parts import parts_of
from elm_agent.bench.stream_run import StreamSummary, run_stream, summarise
from elm_agent.bench.streams import Line, arithmetic_stream
from elm_agent.protocols import Observer
from elm_agent.settings import Settings

if TYPE_CHECKING:
    from elm_agent.runtime import Runtime

FAMILIES = ("products", "sums")
"""Easy arithmetic: the embedded model gets part of it right, so there is room in both directions."""


@dataclass(frozen=True, slots=True)
class Size:
    """How long a demo is."""

    questions: int
    memories: int


FULL = Size(questions=40, memories=6)
SHORT = Size(questions=4, memories=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """What the table at the end says."""

    seed: int
    namespace: str
    summary: StreamSummary
    memories: int
    seconds_per_memory: float | None
    seconds: float
    home: Path
    results: Path
    picture: Path
    next_commands: tuple[str, ...]


def demo_settings(settings: Settings, *, seed: int, now: datetime) -> Settings:
    """The user's settings in a fresh namespace, with this seed, in strict order and with short answers."""
    return settings.model_copy(
        update={
            "namespace": f"demo-{seed}-{now:%Y%m%d-%H%M%S}",
            "max_new_tokens": min(settings.max_new_tokens, 32),
            "learning": settings.learning.model_copy(update={"seed": seed}),
            "retrieval": settings.retrieval.model_copy(update={"exclude_same_question": True}),
        }
    )


def run_demo(
    settings: Settings,
    *,
    seed: int,
    questions: int,
    memories: int,
    families: Sequence[str] = FAMILIES,
    out: Path,
    observe: Observer,
    open_runtime: Callable[[Settings, Observer], Runtime],
    program: str = "elm-agent",
) -> DemoReport:
    """Answer ``questions`` problems in order and learn from the first ``memories`` of them.

    ``observe`` is told ``start``, ``answer`` and ``learned`` (see ``run_stream``), ``train.step`` and ``report``.
    ``open_runtime`` opens the runtime for settings and an observer of its learning; ``program`` is how the commands
    to try next begin.

    Raises:
        ElmError: whatever answering or storing raises; what was answered until then is in the results file.
    """
    started = time.perf_counter()
    settings = demo_settings(settings, seed=seed, now=datetime.now())
    problems = arithmetic_stream(seed=seed, count=questions, families=families)
    lines = [
        Line(number=number, question=problem.question, reference=problem.reference, fault=None)
        for number, problem in enumerate(problems, start=1)
    ]
    folder = out / settings.namespace
    diary = _Diary(observe)
    with ResultsFile(folder / "results.jsonl") as results:
        with open_runtime(settings, diary) as runtime:
            observe("start", {"model": runtime.model.fingerprint.name, "namespace": settings.namespace, "seed": seed})
            run_stream(lines[:memories], results, parts_of(runtime, observe=observe), observe=diary)
            only_answer = parts_of(runtime, observe=observe, context={"learn": False})
            run_stream(lines, results, only_answer, observe=diary)
        summary = summarise(lines, results)
        judged = [record for line in lines if (record := results.records[line.number]).get("right") is not None]
    picture = folder / "stream.png"
    draw_stream(
        picture,
        zero_shot=[record["zero_shot_right"] for record in judged],
        agent=[record["right"] for record in judged],
        learned_after=[detail["line"] for detail in diary.learned],
        vote_shares=diary.vote_shares,
        title=f"{questions} questions of {' and '.join(families)}, seed {seed}: no labels were used",
    )
    report = DemoReport(
        seed=seed,
        namespace=settings.namespace,
        summary=summary,
        memories=len(diary.learned),
        seconds_per_memory=_mean([detail["seconds"] for detail in diary.learned]),
        seconds=time.perf_counter() - started,
        home=settings.home,
        results=results.path,
        picture=picture,
        next_commands=_next_commands(settings, diary, program),
    )
    observe("report", asdict(report))
    return report


class _Diary:
    """Passes everything on and keeps what the picture and the table need."""

    def __init__(self, observe: Observer) -> None:
        self._observe = observe
        self.vote_shares: dict[str, list[float]] = {}
        self.learned: list[dict[str, Any]] = []

    def __call__(self, name: str, detail: dict[str, Any]) -> None:
        if name == "train.step":
            self.vote_shares.setdefault(detail["job_id"], []).append(detail["vote_share"])
        elif name == "learned" and detail["memory_id"]:
            self.learned.append(detail)
        self._observe(name, detail)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _next_commands(settings: Settings, diary: _Diary, program: str) -> tuple[str, ...]:
    where = f"--home {shlex.quote(str(settings.home))} --namespace {settings.namespace}"
    if settings.model != Settings.model_fields["model"].default:
        where += f" --model {shlex.quote(settings.model)}"
    memory_id = diary.learned[0]["memory_id"] if diary.learned else "MEMORY_ID"
    return (
        f"{program} memories list {where}",
        f"{program} memories why {memory_id} {where}",
        f'{program} ask "What is 7 times 6?" {where}',
    )
