"""``maintain --merge`` and ``--distil``: what they run, and how it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elm_agent.cli.opening import OpenBank, opened_runtime
from elm_agent.cli.options import Shared
from elm_agent.cli.output import Output, short
from elm_agent.cli.progress import stream_bar

if TYPE_CHECKING:
    from elm_agent.cli.progress import Advance
    from elm_agent.memory.condensing import CondenseReport, Tried
    from elm_agent.protocols import Observer


def condense(
    options: Shared, opened: OpenBank, *, merge: bool, distil: bool, seconds: float | None, dry_run: bool
) -> CondenseReport:
    """A dry run looks at the bank that is open; what tries needs the model, whose runtime begins no learning."""
    from elm_agent.runtime import condense_bank

    chosen: dict[str, Any] = {"merge": merge, "distil": distil, "seconds": seconds, "actor": "command line"}
    out = options.output()
    if dry_run:
        with stream_bar(out, total=None, done=0) as bar:
            return condense_bank(opened.bank, options.load(), dry_run=True, observe=_progress(bar), **chosen)
    with (
        opened_runtime(options, owns_index=False, learn=False, worker={"mode": "external"}) as runtime,
        stream_bar(out, total=None, done=0) as bar,
    ):
        return condense_bank(
            runtime.bank, runtime.settings, model=runtime.model, task=runtime.task, observe=_progress(bar), **chosen
        )


def show_condensed(out: Output, report: CondenseReport) -> None:
    """For people; with --json it is part of the document."""
    if report.tried:
        columns = ("how", "memories", "similarity", "became", "questions")
        out.table(columns, [_row(one, report.dry_run) for one in report.tried])
    would = "would be " if report.dry_run else ""
    found = f"{report.retired} memories {would}superseded, {report.made} {would}made"
    vain = f"; {report.known} groups were tried in vain before" if report.known else ""
    left = f"; no time was left for {report.left}, the next pass goes on with them" if report.left else ""
    out.say(f"{found}{vain}{left}")


def _row(one: Tried, dry_run: bool) -> tuple[object, ...]:
    became = "would be tried" if dry_run else one.successor or f"as it was: {one.reason}"
    asked = "; ".join(short(question, 30) for question in one.questions[:3])
    more = f" and {len(one.questions) - 3} more" if len(one.questions) > 3 else ""
    return one.how, len(one.members), one.similarity, became, asked + more


def _progress(bar: Advance) -> Observer:
    def tell(name: str, detail: dict[str, Any]) -> None:
        if name == "condense.planned":
            bar(0, f"{detail['how']} {detail['members']} memories")
        elif name == "distil.step":
            bar(0, f"distilling, step {detail['step'] + 1}, loss {detail['loss']:.3g}")
        elif name == "condense.done":
            bar(1, "looking")

    return tell
