"""``elm-agent forget``: everything that came from one person or source goes, for good."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from elm_agent.cli.confirm import agreed
from elm_agent.cli.maintain import show_left
from elm_agent.cli.opening import whole_bank
from elm_agent.cli.options import Shared
from elm_agent.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from elm_agent.storage.purge import Forgotten


def forget(
    options: Shared,
    subject: Annotated[str, typer.Option("--subject", metavar="NAME", help="Whose experience is to be forgotten.")],
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="In all namespaces, not only in the one of the settings.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without the question.")] = False,
) -> None:
    """Purge every memory, episode, use and job that came from a subject, pinned ones too. Cannot be undone.

    First it shows what would go; then it asks, or does it with --yes. The ledger keeps that something was erased,
    not what.
    """
    out = options.output()
    settings = options.load()
    namespace = None if everywhere else settings.namespace
    with whole_bank(settings, owns_index=True) as bank:
        found = bank.forget_subject(subject, namespace=namespace, actor="command line", dry_run=True)
        gone = False
        if not found:
            out.note("nothing came from this subject")
        elif yes or not out.json:
            _show(out, found, "would go" if not yes else "go")
        if found and agreed(out, "Forget all of it, for good?", yes=yes):
            found = bank.forget_subject(subject, namespace=namespace, actor="command line")
            gone = True
    if out.json:
        out.document({"dry_run": not gone, "forgotten": found})
    elif gone:
        out.say("forgotten")
        for one in found:
            show_left(out, one)


def _show(out: Output, found: Sequence[Forgotten], verb: str) -> None:
    for one in found:
        counts = f"{len(one.memory_ids)} memories with their episodes, {one.jobs} jobs, {one.uses} uses"
        out.say(f"namespace {one.namespace}: {counts} {verb}")
