"""``elm-agent maintain``: evict, purge, tidy and condense by the rules of the settings, once or again and again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elm_agent.cli.condense import condense, show_condensed
from elm_agent.cli.confirm import agreed
from elm_agent.cli.opening import opened_bank
from elm_agent.cli.options import Shared
from elm_agent.cli.output import Output, short
from elm_agent.cli.progress import stream_bar
from elm_agent.errors import InputError

if TYPE_CHECKING:
    from elm_agent.memory.condensing import CondenseReport
    from elm_agent.memory.maintain import MaintenanceReport
    from elm_agent.protocols import Observer

SHOWN = 50
_COUNTS = ("evicted", "kept", "purged", "used_events", "outbox_rows")  # of each namespace


def maintain(
    options: Shared,
    evict: Annotated[bool, typer.Option("--evict", help="Retire what the policies name; can be restored.")] = False,
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove for good what was retired before the undo window.")
    ] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Let one of several near-duplicates serve for all of them.")
    ] = False,
    distil: Annotated[
        bool, typer.Option("--distil", help="Make one new memory of several that are near each other.")
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option("--budget", metavar="SECONDS", min=1, help="Most time for --merge and --distil together."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    every: Annotated[
        float | None, typer.Option("--every", metavar="SECONDS", min=1, help="Again and again, until stopped.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without the question.")] = False,
) -> None:
    """Retire and purge memories by the settings of [eviction], count uses into the ledger, fit abstention
    anew, tidy outbox and cache.

    Without --evict, --purge, --merge and --distil the first two are done as the settings say. First it shows what
    would go and why; then it asks, or does it with --yes. --merge and --distil, by the settings of [maintenance], try
    each change with the model before it is made. Safe while agents and workers use the bank, and to be stopped at any
    time.
    """
    if budget is not None and not (merge or distil):
        raise InputError("--budget is for --merge and --distil: add one of them")
    if every is not None and not (yes or dry_run):
        raise InputError("--every asks nobody: add --yes, or --dry-run")
    out = options.output()
    settings = options.load()
    both = not (evict or purge or merge or distil)
    chosen = {"evict": evict or both, "purge": purge or (both and settings.eviction.purge)}
    from elm_agent.runtime import maintain_bank

    with opened_bank(options, owns_index=chosen["purge"]) as opened:

        def run(*, dry: bool) -> MaintenanceReport:
            with stream_bar(out, total=None, done=0) as bar:
                return maintain_bank(
                    opened.bank,
                    settings,
                    namespaces=[opened.namespace],
                    dry_run=dry,
                    actor="command line",
                    observe=_progress(bar),
                    **chosen,
                )

        def fewer(*, dry: bool) -> CondenseReport | None:
            if not (merge or distil):
                return None
            return condense(options, opened, merge=merge, distil=distil, seconds=budget, dry_run=dry)

        found = None
        while True:
            once = every is None
            if dry_run or (once and not yes):
                report, found = run(dry=True), fewer(dry=True)
                _show(out, report, found)
            if not dry_run and (not once or agreed(out, _question(None if yes else report, found), yes=yes)):
                _show(out, run(dry=False), fewer(dry=False))
            if every is None:
                return
            time.sleep(every)


def _progress(bar: Any) -> Observer:
    def tell(name: str, _detail: dict[str, Any]) -> None:
        if name == "evict.planned":
            bar(1, "looking")
        elif name.endswith(".committed"):
            bar(0, name.removesuffix(".committed"))

    return tell


def _question(report: MaintenanceReport | None, found: CondenseReport | None) -> str:
    if report is None:
        return ""
    tries = f", and try {len(found.tried)} groups" if found is not None else ""
    return f"Retire {report.total('evicted')} and purge {report.total('purged')} memories{tries}?"


def _show(out: Output, report: MaintenanceReport, condensed: CondenseReport | None) -> None:
    counts = {name: report.total(name) for name in _COUNTS}
    if out.json:
        out.document(
            {
                "dry_run": report.dry_run,
                **counts,
                "cached_files": report.cached_files,
                "namespaces": report.namespaces,
                "planned": _plain(report),
            }
            | ({} if condensed is None else {"condensed": condensed})
        )
        return
    if report.planned and report.dry_run:
        columns = ("id", "policy", "reason", "question")
        out.table(columns, (_row(named) for named in report.planned[:SHOWN]))
        more = counts["evicted"] + counts["kept"] - min(len(report.planned), SHOWN)
        if more > 0:
            out.say(f"and {more} more")
    would = "would be " if report.dry_run else ""
    kept = f" ({counts['kept']} more are pinned and kept)" if counts["kept"] else ""
    out.say(f"{counts['evicted']} memories {would}retired{kept}, {counts['purged']} {would}purged")
    if not report.dry_run:
        out.say(f"{counts['used_events']} use events written, {counts['outbox_rows']} outbox rows deleted")
        if report.cached_files:
            out.say(f"{report.cached_files} tensors were taken out of this machine's cache")
        for namespace in report.namespaces:
            if namespace.calibration is not None:
                out.say(f"{namespace.namespace}: {namespace.calibration}")
            show_left(out, namespace)
    if condensed is not None:
        show_condensed(out, condensed)


def _plain(report: MaintenanceReport) -> list[dict[str, Any]]:
    return [
        {
            "namespace": named.facts.namespace,
            "memory_id": named.facts.id,
            "question": named.facts.question,
            "kept": named.kept,
            "reasons": [{"policy": policy, "reason": reason} for policy, reason in named.reasons],
        }
        for named in report.planned
    ]


def _row(named: Any) -> tuple[Any, ...]:
    policy = f"{named.policies} (kept: pinned)" if named.kept else named.policies
    return named.facts.id, policy, named.reason, short(named.facts.question, 50)


def show_left(out: Output, report: Any) -> None:
    """What cannot be reached from here and may still hold what was purged: packs, and indexes of others."""
    for memory_id, pack_id, path in report.exports:
        out.say(f"{memory_id} is still in the pack {path} ({pack_id[:19]}): delete that file yourself")
    for sentence in report.left:
        out.say(sentence)
