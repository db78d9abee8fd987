"""``elm-agent bank``: the bank as a whole. Needs no model."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elm_agent.cli.opening import whole_bank
from elm_agent.cli.options import Shared, group, shared
from elm_agent.cli.output import Output
from elm_agent.cli.progress import count_bar
from elm_agent.errors import InputError

if TYPE_CHECKING:
    from elm_agent.storage.moving.move import MoveReport

app = group("bank", "The bank as a whole: move it to other back ends.")

_WINS = ("ELM_DATABASE_URL", "ELM_TENSORS", "ELM_HOME")


@app.command()
@shared
def migrate(
    options: Shared,
    source: Annotated[Path, typer.Option("--from", metavar="PROFILE", help="Settings file of the bank as it is.")],
    target: Annotated[Path, typer.Option("--to", metavar="PROFILE", help="Settings file of where it shall be.")],
    keep: Annotated[bool, typer.Option("--keep", help="Copy only; both go on as banks of their own.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be copied.")] = False,
) -> None:
    """Move a live bank between back ends: SQLite and PostgreSQL, local tensors and an object store, any index.

    Agents and workers may use the bank while it is copied. At the end writers wait until everything is compared;
    then the old place refuses changes and says where the bank is. Interrupted or killed: run the same command again.
    """
    _check(options)
    out = options.output()
    from elm_agent.runtime import open_bank
    from elm_agent.settings import load_settings
    from elm_agent.storage.moving.move import move

    there = load_settings(target)
    with whole_bank(load_settings(source), owns_index=False) as bank:
        other = open_bank(there, owns_index=not dry_run)
        try:
            with count_bar(out, "copying, comparing") as bar:

                def observe(name: str, detail: dict[str, object]) -> None:
                    if name == "move.batch":
                        bar(int(str(detail["done"])), int(str(detail["total"])))

                report = move(bank, other, actor="command line", keep=keep, dry_run=dry_run, observe=observe)
        finally:
            other.close()
    out.document(report) if out.json else _show(out, report, keep=keep, dry_run=dry_run)


def _check(options: Shared) -> None:
    given = [field.name for field in fields(options) if field.name != "json" and getattr(options, field.name)]
    if given:
        raise InputError(f"--{given[0].replace('_', '-')} says nothing here: both banks are named by their profiles")
    if setting := next((name for name in _WINS if os.environ.get(name)), None):
        raise InputError(f"{setting} is set and would win over both profiles: unset it for this command")


def _show(out: Output, report: MoveReport, *, keep: bool, dry_run: bool) -> None:
    rows = ", ".join(f"{count} {table}" for table, count in report.rows.items() if count)
    what = f"{len(report.namespaces)} namespaces, {report.tensors} tensors; rows: {rows or 'none'}"
    if dry_run:
        out.say(f"would {'copy' if keep else 'move'} from {report.source} to {report.target}: {what}")
        return
    if not report.rows:
        said = "the last step was done now" if report.moved else "there was nothing left to do"
        out.say(f"the bank is in {report.target}: {said}")
        return
    out.say(f"{'copied' if keep else 'moved'} from {report.source} to {report.target}: {what}")
    out.say(f"everything was compared ({report.digest}); writers waited for {report.held_seconds:.1f} s")
    for namespace, digest in report.missing:
        out.say(f"the source had lost tensor {digest} of namespace {namespace!r}; `elm-agent doctor` says what to do")
    if report.index is not None:
        out.say(f"the new index is not fed yet, the first question will do it: {report.index}")
