"""``elm-agent export`` and ``elm-agent import``: memories leave the bank in a file, and come in from one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elm_agent.cli.memories import ACTOR
from elm_agent.cli.opening import opened_bank, whole_bank
from elm_agent.cli.options import Shared
from elm_agent.cli.output import Output
from elm_agent.cli.progress import count_bar
from elm_agent.records import MemoryState

if TYPE_CHECKING:
    from elm_agent.storage.packs.transfer import ImportReport


def export(
    options: Shared,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The pack to write, such as sums.elmpack.")],
    memory: Annotated[
        list[str] | None, typer.Option("--memory", metavar="ID", help="This memory, in any state; can be repeated.")
    ] = None,
    state: Annotated[
        MemoryState, typer.Option("--state", help="All memories in this state, if no --memory is given.")
    ] = MemoryState.ACTIVE,
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY", help="Private key to sign with (`elm-agent keys new`).")
    ] = None,
    no_episodes: Annotated[
        bool, typer.Option("--no-episodes", help="Without questions, rollouts and curves: only what can be used.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write memories of the namespace into one file that another bank of the same model can import.

    Whoever has the file can read it, also when the bank is encrypted. A purge names the packs a memory went into.
    """
    out = options.output()
    from elm_agent.storage.packs.transfer import export_pack

    with opened_bank(options) as opened, count_bar(out, "memories") as progress:
        report = export_pack(
            opened.bank,
            opened.namespace,
            file,
            memory_ids=memory or (),
            state=state,
            episodes=not no_episodes,
            key=sign,
            force=force,
            actor=ACTOR,
            progress=progress,
        )
    if out.json:
        out.document(report)
        return
    signed = f"signed by {report.signed_by}" if report.signed_by else "not signed"
    held = "with questions and rollouts, readable by whoever has the file" if report.episodes else "without episodes"
    out.say(f"exported {report.memories} memories to {file} ({report.bytes:,} bytes), {signed}, {held}")
    out.say(f"pack {report.pack_id}")


def import_(
    options: Shared,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A pack that `elm-agent export` wrote.")],
    public_key: Annotated[
        str | None,
        typer.Option("--public-key", metavar="KEY", help="Who must have signed it: ed25519:<base64>, or a file."),
    ] = None,
    new: Annotated[
        bool, typer.Option("--new", help="Make the namespace, for the pack's model, if it is not in the bank.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the whole pack, say what is in it and what is new; write nothing."),
    ] = False,
) -> None:
    """Take the memories of a pack into the namespace, as candidates with the pack as their origin.

    The whole pack is checked before anything is written, and nothing in it is executed. Safe to repeat: what the bank
    has is not stored twice. `elm-agent memories restore` makes a candidate active.
    """
    out, settings = options.output(), options.load()
    from elm_agent.storage.packs.transfer import import_pack

    with whole_bank(settings, owns_index=False, make=new) as bank, count_bar(out, "memories") as progress:
        report = import_pack(
            bank,
            settings.namespace,
            file,
            public_key=public_key,
            new_namespace=new,
            dry_run=dry_run,
            actor=ACTOR,
            progress=progress,
        )
    out.document(report) if out.json else _show(out, report)


def _show(out: Output, report: ImportReport) -> None:
    would = "would be " if report.dry_run else ""
    facts = {
        "pack": report.pack_id,
        "model": f"{report.model.name} ({report.model.id})",
        "from": f"namespace {report.exported_from}, {'with' if report.episodes else 'without'} episodes",
        "signature": f"good, by {report.signed_by}" if report.signed_by else "none: anybody may have made it",
        "memories": f"{report.memories}: {report.new} {would}new, {report.known} known",
    }
    for name, value in facts.items():
        out.say(f"{name:<12}{value}")
    if report.new and not report.dry_run:
        out.say("the new ones are candidates: `elm-agent memories restore ID` makes one active")
