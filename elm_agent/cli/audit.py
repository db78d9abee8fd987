"""``elm-agent audit``: the chained history of a bank, read and verified. Needs no model."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from elm_agent.cli.checkpoints import checkpoint, verify_against
from elm_agent.cli.opening import opened_bank, whole_bank
from elm_agent.cli.options import TIMES, Shared, group, in_zone, shared
from elm_agent.cli.output import plain, short, when
from elm_agent.cli.progress import count_bar
from elm_agent.errors import InputError, StorageError
from elm_agent.records import EventKind, EventRecord

app = group("audit", "Read the ledger of a bank, and verify that nothing in it was changed.")


@app.command()
@shared
def log(
    options: Shared,
    memory: Annotated[str | None, typer.Option("--memory", metavar="ID", help="Only of this memory.")] = None,
    kind: Annotated[EventKind | None, typer.Option("--kind", help="Only events of this kind.")] = None,
    actor: Annotated[str | None, typer.Option("--actor", metavar="NAME", help="Only by this actor.")] = None,
    since: Annotated[datetime | None, typer.Option("--since", formats=TIMES, help="Not before this time.")] = None,
    until: Annotated[datetime | None, typer.Option("--until", formats=TIMES, help="Before this time.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")] = 100,
) -> None:
    """Show the events of the namespace, oldest first, in UTC. Times that are given are local, or name their zone."""
    out = options.output()
    with opened_bank(options) as opened:
        found = opened.bank.events(
            opened.namespace,
            memory,
            kind=kind,
            actor=actor,
            since=in_zone(since),
            until=in_zone(until),
            limit=limit,
        )
    if out.json:
        out.document(found)
    elif not found:
        out.say("no such events")
    else:
        out.table(("revision", "when", "event", "memory", "actor", "detail", "note"), map(_row, found))


def _row(event: EventRecord) -> tuple[Any, ...]:
    detail = " ".join(f"{name}={str(value)[:24]}" for name, value in event.detail.items())
    words = short(event.note) if event.note is not None else ""
    return (event.revision, when(event.created_at), event.kind, event.memory_id or "", event.actor, detail, words)


@app.command()
@shared
def verify(
    options: Shared,
    every: Annotated[bool, typer.Option("--all", help="All namespaces of the bank, not only one.")] = False,
    held_against: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="FILE", help="Hold every chain against this checkpoint.")
    ] = None,
    public_key: Annotated[
        str | None,
        typer.Option("--public-key", metavar="KEY", help="Who signed the checkpoint: ed25519:..., or a file."),
    ] = None,
) -> None:
    """Walk the chain: every event's digest covers the one before it. Names the first broken place, status 4."""
    if held_against is not None:
        raise typer.Exit(verify_against(options, held_against, public_key))
    if public_key is not None:
        raise InputError("--public-key goes with --checkpoint FILE: the signature is in that file")
    from elm_agent.storage.ledger import chain

    out = options.output()
    settings = options.load()
    with whole_bank(settings, owns_index=False) as bank, count_bar(out, "events") as progress:
        names = [info.name for info in bank.namespaces()] if every else [settings.namespace]
        reports = [chain.verify(bank.database, name, vault=bank.vault, progress=progress) for name in names]
    broken = [report.broken for report in reports if report.broken is not None]
    if out.json:
        out.document({"chains": plain(reports), "whole": not broken})
    else:
        rows = [(report.namespace, report.events, report.head, _verdict(report)) for report in reports]
        out.table(("namespace", "events", "head", "chain"), rows)
    if broken and not out.json:
        first = broken[0]
        raise StorageError(
            f"the chain of namespace {first.namespace!r} is broken at event {first.revision}: {first.problem}; "
            f"{len(broken)} of {len(reports)} chains are broken. Restore the database from a backup and compare"
        )
    if broken:
        raise typer.Exit(StorageError.exit_code)


def _verdict(report: Any) -> str:
    return "whole" if report.broken is None else f"BROKEN at {report.broken.revision}: {report.broken.problem}"


app.command()(shared(checkpoint))
