"""``elm-agent demo``: the main job, end to end, on the embedded defaults. Only passes the options on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from elm_agent.cli.options import Shared


def demo(
    options: Shared,
    short: Annotated[bool, typer.Option("--short", help="A small stream, to see that everything works.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the stream and of all sampling.")] = 0,
    questions: Annotated[int | None, typer.Option("--questions", min=1, help="Length of the stream.")] = None,
    memories: Annotated[int | None, typer.Option("--memories", min=0, help="At most so many memories.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of results and pictures.")] = None,
) -> None:
    """Watch a small language model get better at a stream of questions, without labels, keys or a GPU."""
    settings = options.load()
    show = options.output()
    from elm_agent.bench.demo import FULL, SHORT, run_demo

    size = SHORT if short else FULL

    def tell(name: str, detail: Mapping[str, Any]) -> None:
        if show.json:
            show.event(name, detail)
        elif "text" in detail:
            show.say(str(detail["text"]))

    run_demo(
        settings,
        seed=seed,
        questions=questions or size.questions,
        memories=size.memories if memories is None else memories,
        out=out or settings.home / "demo",
        console_events=tell,
    )
