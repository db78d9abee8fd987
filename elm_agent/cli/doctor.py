"""``elm-agent doctor``: does what lies on disk agree with what the database says? Needs no model."""

from __future__ import annotations

from typing import Annotated

import typer

from elm_agent.cli.options import Shared


def doctor(
    options: Shared,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
) -> None:
    """Check the whole bank: tensors, index, jobs, rows."""
    raise NotImplementedError
