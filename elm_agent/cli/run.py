"""``elm-agent run``: a stream of questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elm_agent.cli.options import Shared


def run(
    options: Shared,
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="One JSON object a line.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Results; FILE.results.jsonl by default.")
    ] = None,
) -> None:
    """Answer a stream of questions and learn from it."""
    raise NotImplementedError
