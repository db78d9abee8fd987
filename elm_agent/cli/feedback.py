"""``elm-agent feedback``: what a user says of an answer. Needs no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from elm_agent.cli.opening import opened_bank
from elm_agent.cli.options import Shared
from elm_agent.cli.output import short
from elm_agent.records import Effect, Feedback, MemoryState

if TYPE_CHECKING:
    from elm_agent.memory.feedback import FeedbackReport

SAID = {
    None: "which says nothing of its memory",
    Effect.HELPED: "so its memory helped",
    Effect.SAME: "so its memory made no difference",
    Effect.HURT: "so its memory was the worse of the two",
    Effect.PERHAPS_HELPED: "so its memory may have had the better answer",
    Effect.PERHAPS_HURT: "so its memory may have hurt",
}


def feedback(
    options: Shared,
    use_id: Annotated[str, typer.Argument(metavar="USE_ID", help="Id of the use (use_...), which `ask` tells.")],
    verdict: Annotated[Feedback, typer.Argument(metavar="right|wrong", help="What the answer was.")],
    answer: Annotated[
        str | None, typer.Option("--answer", metavar="TEXT", help="The right answer; it says more than wrong alone.")
    ] = None,
) -> None:
    """Say that an answer was right or wrong: its memory is worth more or less from then on.

    The last word counts. A harmful memory is quarantined, and a wrong answer's question learnt again, where the
    settings utility.quarantine_harm and learning.replay_rollouts say so.
    """
    from elm_agent.runtime import take_feedback

    with opened_bank(options) as opened:
        report = take_feedback(opened.bank, options.load(), use_id, verdict, answer=answer)
    out = options.output()
    if out.json:
        out.document(report)
    else:
        out.say(_told(report))


def _told(report: FeedbackReport) -> str:
    word = _word(report.feedback, report.answer)
    if not report.recorded:
        return f"{report.use_id} was noted as {word} before; nothing changed"
    parts = [f"{report.use_id} is noted as {word}, {SAID[report.effect]}"]
    if report.replaced is not None:
        parts.append(f"this replaces {_word(report.replaced, report.replaced_answer)}")
    if report.memory_state is MemoryState.QUARANTINED:
        parts.append(f"memory {report.memory_id} is quarantined, `elm-agent memories restore` brings it back")
    if report.job_id is not None:
        parts.append(f"its question is learnt again as {report.job_id} ({report.job_state})")
    return "; ".join(parts)


def _word(feedback: Feedback, answer: str | None) -> str:
    return feedback.value if answer is None else f"{feedback.value} (right is {short(answer)})"
