"""Dry run first: what deletes shows what it would do, and does it with --yes, or when somebody says so."""

from __future__ import annotations

import sys

import typer

from elm_agent.cli.output import Output


def agreed(out: Output, question: str, *, yes: bool) -> bool:
    """Whether to go on: --yes, or a yes typed at a terminal. Elsewhere, and with --json, only --yes counts."""
    if yes:
        return True
    if out.json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        out.note("nothing was changed: repeat the command with --yes to do it")
        return False
    return typer.confirm(question, default=False, err=True)
