"""``elm-agent worker``: learns what waits in the queue."""

from __future__ import annotations

from typing import Annotated

import typer

from elm_agent.cli.options import Shared


def worker(
    options: Shared,
    once: Annotated[bool, typer.Option("--once", help="Stop when the queue is empty.")] = False,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Jobs at the same time.")] = 1,
) -> None:
    """Learn what waits in the queue, until stopped; an unfinished job returns to the queue."""
    raise NotImplementedError
