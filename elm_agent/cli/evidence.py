"""``elm-agent bench online|offline|transfer``: the paper's protocols with its baselines, resumable after a kill."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elm_agent.cli.logs import lines_on_stderr
from elm_agent.cli.options import Shared
from elm_agent.cli.output import Output, plain
from elm_agent.cli.progress import fetch_embedded, stream_bar
from elm_agent.errors import InputError

if TYPE_CHECKING:
    from elm_agent.bench.evidence.contract import GenerationLine
    from elm_agent.cli.progress import Advance

Tasks = Annotated[
    str,
    typer.Option(
        "--tasks",
        metavar="LIST",
        help="Such as arithmetic:products+ages, gym:NAME, math500, amc23=FILE.jsonl or FILE.jsonl:QUESTION:ANSWER.",
    ),
]
Methods = Annotated[str, typer.Option("--methods", metavar="LIST", help="Such as zero_shot,icl,elm,elm_kv:lora.")]
Seeds = Annotated[str, typer.Option("--seeds", metavar="LIST", help="Seeds of order and sampling.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Most questions of each set; the first ones.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the run; the same one goes on with it.")]
TaskSeed = Annotated[int, typer.Option("--task-seed", min=0, help="Seed of questions that are generated.")]
Prompt = Annotated[
    str, typer.Option("--prompt", metavar="NAME", help="short: the final answer only; paper: step by step.")
]
Tokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Most tokens of an answer; default: the setting.")
]
Together = Annotated[
    int,
    typer.Option("--together", min=1, help="Most seeds of a method, or questions if it learns nothing, at a time."),
]


def online(
    options: Shared,
    tasks: Tasks = "arithmetic",
    methods: Methods = "zero_shot,elm_input,elm_kv",
    seeds: Seeds = "0,1,2",
    limit: Limit = None,
    out: Out = Path("evidence/online"),
    task_seed: TaskSeed = 0,
    prompt: Prompt = "short",
    max_new_tokens: Tokens = None,
    together: Together = 8,
) -> None:
    """Answer a stream of questions, each with what was learned from those before it.

    The same command goes on where a stopped run ended; more methods and seeds may be added to it.
    """
    given = _given(tasks, methods, seeds, limit=limit, task_seed=task_seed, prompt=prompt)
    _run(options, out, max_new_tokens, together, protocol="online", **given)


def offline(
    options: Shared,
    tasks: Tasks = "arithmetic",
    methods: Methods = "zero_shot,elm",
    seeds: Seeds = "0",
    limit: Limit = 20,
    out: Out = Path("evidence/offline"),
    task_seed: TaskSeed = 0,
    prompt: Prompt = "short",
    max_new_tokens: Tokens = None,
    together: Together = 8,
) -> None:
    """Make a memory of each question alone and put it before every question: the matrix of memory by question."""
    given = _given(tasks, methods, seeds, limit=limit, task_seed=task_seed, prompt=prompt)
    _run(options, out, max_new_tokens, together, protocol="offline", **given)


def transfer(
    options: Shared,
    source: Annotated[str, typer.Option("--source", metavar="LIST", help="Tasks that are learned from, each alone.")],
    tasks: Tasks = "arithmetic",
    methods: Methods = "zero_shot,elm_input,elm_kv",
    seeds: Seeds = "0,1,2",
    limit: Limit = None,
    out: Out = Path("evidence/transfer"),
    task_seed: TaskSeed = 0,
    prompt: Prompt = "short",
    max_new_tokens: Tokens = None,
    together: Together = 8,
) -> None:
    """Learn from one task online, then answer another one with what was learned, and learn nothing more."""
    given = _given(tasks, methods, seeds, limit=limit, task_seed=task_seed, prompt=prompt)
    _run(options, out, max_new_tokens, together, protocol="transfer", sources=_words(source), **given)


def _given(tasks: str, methods: str, seeds: str, **rest: Any) -> dict[str, Any]:
    """Fields of a ``Plan``."""
    return {"tasks": _words(tasks), "methods": _words(methods), "seeds": _numbers(seeds), **rest}


def _run(
    options: Shared, out: Path, max_new_tokens: int | None, together: int, *, protocol: str, **given: Any
) -> None:
    settings = options.load(**({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}))
    show = options.output()
    lines_on_stderr(settings.log_format)
    from elm_agent.bench.evidence.contract import Protocols
    from elm_agent.bench.evidence.plan import Plan, check
    from elm_agent.bench.evidence.run import run_evidence
    from elm_agent.bench.speed_about import about
    from elm_agent.runtime import opened_model

    plan = Plan(protocol=Protocols(protocol), **given)
    check(plan, settings)
    fetch_embedded(show, settings)  # under a bar of its own, and screens bear one
    environment = about(shlex.join(["elm-agent", *sys.argv[1:]]))
    with stream_bar(show, total=None, done=0) as bar:
        teller = _Teller(show, bar)
        try:
            lines = run_evidence(
                plan,
                settings,
                out=out,
                open_model=lambda: opened_model(settings),
                environment=environment,
                observe=teller,
                together=together,
            )
        except KeyboardInterrupt:
            show.note(
                f"stopped; {teller.done} of the answers asked for are in {out}; the same command goes on with them"
            )
            raise
    _sum_up(show, lines, out)


class _Teller:
    """A bar of answers and learnings for people, lines of JSON for programs. What cannot be used of a data set is
    always told."""

    def __init__(self, show: Output, bar: Advance) -> None:
        self._show = show
        self._bar = bar
        self._words = ""
        self._ahead = 0  # memories that were trained, and whose learning is not told yet
        self.done = 0

    def __call__(self, name: str, detail: Mapping[str, Any]) -> None:
        if name == "sets":
            self._sets(detail["sets"])
        elif name == "start":
            self.done = detail["done"]
            if detail["mended"]:
                self._show.note("the last line of the run was cut off and has been dropped")
            if self.done:
                self._show.note(f"{self.done} of {detail['answers']} answers are there; going on with the rest")
            self._bar(self.done + detail["learned"], "", total=detail["answers"] + detail["learnings"])
        elif name == "method":
            self._words = f"{detail['method']}, seed {detail['seed']}, {detail.get('task') or detail['source']}"
            self._bar(0, self._words)
        elif name == "prepare":
            self._ahead += 1
            self._bar(1, f"{self._words}, {detail['done']} of {detail['total']} memories trained")
        elif name in ("answer", "learn"):
            self._line(name, detail["line"])
            return
        else:
            return
        if self._show.json:
            self._show.event(name, detail)

    def _sets(self, sets: Mapping[str, Mapping[str, Any]]) -> None:
        for told in sets.values():
            faults, equal = told["faults"], told["duplicates"]
            self._show.note(f"{told['name']}: {told['questions']} questions")
            for fault in faults[:5]:
                self._show.note(f"  not used: {fault['where']}: {fault['reason']}")
            if len(faults) > 5:
                self._show.note(f"  not used: {len(faults) - 5} more; run.json lists all {len(faults)}")
            if equal:
                self._show.note(
                    f"  {len(equal)} questions come more than once, the first as {', '.join(equal[0][:5])}"
                )

    def _line(self, name: str, line: GenerationLine) -> None:
        self.done += name == "answer"
        if line.failure is not None:
            self._show.note(f"{line.method}, seed {line.seed}, {line.item_id}: {name} failed: {line.failure}")
        if self._show.json:
            fields = ("method", "seed", "task", "source", "position", "item_id", "learner", "answer", "route")
            told = {field: getattr(line, field) for field in (*fields, "correct", "failure", "tokens", "seconds")}
            self._show.event(name, told)
        self._words = f"{line.method}, seed {line.seed}, {line.task}"
        counted = name == "learn" and self._ahead > 0  # when it was trained, which is what takes the time
        self._ahead -= counted
        self._bar(not counted, self._words)


def _sum_up(show: Output, lines: Sequence[GenerationLine], out: Path) -> None:
    from elm_agent.bench.evidence.summary import COLUMNS, counted

    found = counted(lines)
    if show.json:
        show.event("summary", {"folder": out, "methods": [plain(one) for one in found]})
        return
    show.table(COLUMNS, [one.row for one in found])
    show.say(f"\nevery generation is in {out / 'generations.jsonl'}")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    words = _words(text)
    for word in words:
        if not word.isdecimal():
            raise InputError(f"--seeds has {word!r}: expected whole numbers of at least 0, such as 0,1,2")
    return tuple(int(word) for word in words)
