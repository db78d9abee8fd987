"""``elm-agent doctor``: does everything that the bank keeps agree with everything else? Needs no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from elm_agent.cli.opening import whole_bank
from elm_agent.cli.options import Shared
from elm_agent.cli.output import Output
from elm_agent.cli.progress import count_bar
from elm_agent.errors import StorageError

if TYPE_CHECKING:
    from elm_agent.storage.health.doctor import Report


def doctor(
    options: Shared,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended, and say what was done.")] = False,
) -> int:
    """Look for what is wrong in all namespaces: database, ledger, memories, tensors, jobs, purges, indexes, caches.

    The exit code is 4 if anything is left, or if the store of tensors could not be reached.

    Without --repair nothing is changed. Safe while agents and workers use the bank.
    """
    out = options.output()
    with whole_bank(options.load(), owns_index=True) as bank:
        from elm_agent.storage.health.doctor import examine

        with count_bar(out, "checking") as tell:
            report = examine(bank, repair=repair, progress=lambda _what, done, total: tell(done, total))
    if out.json:
        out.document(
            {**_counts(report), "findings": report.findings, "skipped": report.skipped, "notes": report.notes}
        )
    else:
        _show(out, report)
    return StorageError.exit_code if report.left or report.incomplete else 0


def _counts(report: Report) -> dict[str, object]:
    mended = len(report.findings) - len(report.left)
    return {
        "clean": report.clean,
        "incomplete": report.incomplete,
        "mended": mended,
        "left": len(report.left),
        "checked": report.checked,
    }


def _show(out: Output, report: Report) -> None:
    out.say("checked " + ", ".join(f"{count} {what}" for what, count in report.checked.items()))
    for reason in report.skipped:
        out.say(f"not checked: {reason}")
    for note in report.notes:
        out.say(f"note: {note}")
    if report.clean:
        out.say("everything that was checked agrees" if report.incomplete else "everything agrees")
        return
    columns = ("what", "which", "namespace", "problem", "done")
    out.table(columns, ((f.kind, f.subject, f.namespace, f.problem, f.action) for f in report.findings))
    out.say(f"{len(report.findings)} found, {len(report.findings) - len(report.left)} mended")
    if report.left:
        out.say("`elm-agent doctor --repair` mends what can be mended")
