"""``elm-agent review``: what waits for a person, and their word on it. Needs no model."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elm_agent.cli.opening import opened_bank
from elm_agent.cli.options import Shared, group, shared
from elm_agent.cli.output import Output, short, when
from elm_agent.records import Review

if TYPE_CHECKING:
    from elm_agent.memory.reviewing import Reviewed
    from elm_agent.records import MemoryRecord, UseRecord

app = group("review", "Decide what waits for a person: memories that are to serve, answers in place of plain ones.")

ACTOR = "command line"
LIMIT = 50
Id = Annotated[str, typer.Argument(metavar="ID", help="Id of a memory (mem_...) or of a use (use_...).")]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of memories (mem_...) and of uses (use_...).")]
Note = Annotated[str | None, typer.Option("--note", metavar="TEXT", help="Why; kept in the history.")]


class Kind(StrEnum):
    """What somebody is asked about."""

    MEMORIES = "memories"
    ANSWERS = "answers"


@app.command("list")
@shared
def list_(
    options: Shared,
    kind: Annotated[Kind | None, typer.Option("--kind", help="Only memories, or only answers.")] = None,
    review: Annotated[
        Review, typer.Option("--review", help="What waits, oldest first; or what was decided, newest first.")
    ] = Review.WAITING,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many of each.")] = LIMIT,
) -> None:
    """List what waits: memories with the answer that they learned, and answers that differ from the plain one."""
    out = options.output()
    with opened_bank(options) as opened:
        reviews, namespace = opened.bank.reviews, opened.namespace
        memories = [] if kind is Kind.ANSWERS else reviews.memories(namespace, review, limit=limit)
        answers = [] if kind is Kind.MEMORIES else reviews.answers(namespace, review, limit=limit)
        learned = [opened.bank.episode(namespace, one.id).majority_answer for one in memories]
        waiting = reviews.count(namespace)
    if out.json:
        out.document({"waiting": waiting, "memories": memories, "answers": answers})
        return
    if memories:
        _memories(out, memories, learned)
    if answers:
        _answers(out, answers)
    out.say(f"waiting for a review in {namespace!r}: memories {waiting.memories}, answers {waiting.answers}")


@app.command()
@shared
def show(options: Shared, id: Id) -> None:
    """Show one thing that waits, or waited: what it is about, both answers, and what was said."""
    from elm_agent.memory.reviewing import look

    out = options.output()
    with opened_bank(options) as opened:
        found = look(opened.bank, opened.namespace, id)
        learned = None if found.memory is None else opened.bank.episode(opened.namespace, id).majority_answer
    if out.json:
        out.document(found)
        return
    lines = _of_use(found.use) if found.use is not None else _of_memory(found.memory, learned)
    for name, value in {"id": found.id, "review": found.review, "question": found.question, **lines}.items():
        out.say(f"{name:<16}{'-' if value is None else value}")


@app.command()
@shared
def approve(options: Shared, ids: Ids, note: Note = None) -> None:
    """Let memories serve; of answers: the memory's is the right one, which counts as feedback on the use."""
    _decide(options, ids, Review.APPROVED, note)


@app.command()
@shared
def reject(options: Shared, ids: Ids, note: Note = None) -> None:
    """Retire memories that wait; of answers: the plain one is the right one. `undo` takes it back."""
    _decide(options, ids, Review.REJECTED, note)


@app.command()
@shared
def undo(options: Shared, ids: Ids) -> None:
    """Take decisions back: a memory is a candidate again, an answer says nothing of it, and both wait."""
    from elm_agent.memory import reviewing

    with opened_bank(options) as opened:
        done = [reviewing.undo(opened.bank, opened.namespace, id, actor=ACTOR) for id in ids]
    _told(options, done)


def _decide(options: Shared, ids: list[str], verdict: Review, note: str | None) -> None:
    from elm_agent.memory.reviewing import decide

    with opened_bank(options) as opened:
        done = [decide(opened.bank, opened.namespace, id, verdict, actor=ACTOR, note=note) for id in ids]
    _told(options, done)


def _told(options: Shared, done: list[Reviewed]) -> None:
    """As JSON one thing is an object, several are a list."""
    out = options.output()
    if out.json:
        out.document(done[0] if len(done) == 1 else done)
        return
    for one in done:
        out.say(f"{one.id}: {_word(one)}")


def _word(one: Reviewed) -> str:
    if one.review is Review.WAITING:
        return "waits for a review again"
    if one.memory is not None:
        return f"{one.review}, so it is {one.memory.state}"
    assert one.use is not None
    right = one.use.memory_answer if one.review is Review.APPROVED else one.use.zero_shot_answer
    return f"{one.review}, so the answer is {short(right)}"


def _memories(out: Output, found: list[MemoryRecord], learned: list[str | None]) -> None:
    columns = ("id", "state", "vote share", "created", "learned", "question")
    rows = (
        (one.id, one.state, one.final_vote_share, when(one.created_at), short(answer, 30), short(one.question))
        for one, answer in zip(found, learned, strict=True)
    )
    out.table(columns, rows)


def _answers(out: Output, found: list[UseRecord]) -> None:
    columns = ("id", "memory", "its answer", "plain answer", "feedback", "asked", "question")
    out.table(columns, map(_row, found))


def _row(use: UseRecord) -> tuple[Any, ...]:
    answers = short(use.memory_answer, 30), short(use.zero_shot_answer, 30)
    return (use.id, use.memory_id, *answers, use.feedback, when(use.created_at), short(use.question))


def _of_memory(memory: MemoryRecord | None, learned: str | None) -> dict[str, Any]:
    assert memory is not None
    return {
        "learned": learned,
        "vote share": f"{memory.final_vote_share:.3f}",
        "state": memory.state,
        "reason": memory.reason,
        "since": when(memory.state_since),
        "task": memory.task,
        "subject": memory.subject,
    }


def _of_use(use: UseRecord) -> dict[str, Any]:
    return {
        "memory": use.memory_id,
        "its answer": use.memory_answer,
        "plain answer": use.zero_shot_answer,
        "returned": use.answer,
        "route": use.route,
        "reason": use.reason,
        "similarity": f"{use.similarity:.3f}",
        "feedback": use.feedback,
        "note": use.review_note,
        "asked": when(use.created_at),
        "decided": when(use.feedback_at) if use.review is not Review.WAITING else None,
    }
