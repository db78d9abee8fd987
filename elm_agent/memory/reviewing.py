"""A person's word on what waits, whichever kind it is: found by its id, decided, taken back. Decides nothing itself.

``mem_...`` is a memory that is to serve, ``use_...`` a use whose two answers differed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from elm_agent.errors import InputError
from elm_agent.memory.answering import check_storable
from elm_agent.records import MemoryRecord, Review, UseRecord, utcnow

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank

LONGEST_NOTE = 2_000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewed:
    """One thing that somebody was asked about; the one of the two that it is. ``review``: None if nobody was."""

    id: str
    namespace: str
    question: str
    review: Review | None
    memory: MemoryRecord | None = None
    use: UseRecord | None = None


def look(bank: Bank, namespace: str, id: str) -> Reviewed:
    """Whatever has this id, whether or not it waits. Raises ``NotFound``."""
    return of_use(bank.use(namespace, id)) if _is_use(id) else of_memory(bank.memory(namespace, id))


def decide(
    bank: Bank,
    namespace: str,
    id: str,
    verdict: Review,
    *,
    actor: str,
    note: str | None = None,
    expected: int | None = None,
) -> Reviewed:
    """APPROVED: the memory may serve, or its answer is the right one; REJECTED: it may not, or the plain one is.

    ``expected``: the revision of the memory that was looked at.

    Raises ``NotFound``, ``InputError`` for what does not wait, ``ChangedMeanwhile`` for what somebody has decided.
    """
    note = check_note(note)
    if _is_use(id):
        return of_use(bank.reviews.decide_answer(namespace, id, verdict, actor=actor, note=note))
    decided = bank.reviews.decide_memory(namespace, id, verdict, actor=actor, note=note, expected=expected)
    return of_memory(decided)


def undo(bank: Bank, namespace: str, id: str, *, actor: str, expected: int | None = None) -> Reviewed:
    """Take a decision back: it waits again. Raises as ``decide``."""
    if _is_use(id):
        return of_use(bank.reviews.reopen_answer(namespace, id, actor=actor))
    return of_memory(bank.reviews.reopen_memory(namespace, id, actor=actor, expected=expected))


def chosen(use: UseRecord, verdict: Review, note: str | None) -> UseRecord:
    """The use as it is noted when a person chose between its answers before one was returned."""
    from elm_agent.storage.reviews import word_of

    word, right, effect = word_of(use, verdict)
    said = {"feedback": word, "feedback_answer": right, "feedback_effect": effect, "feedback_at": utcnow()}
    return replace(use, review=verdict, review_note=note, **said)  # type: ignore[arg-type]


def check_note(note: object) -> str | None:
    """What a person said, without white space around it, or None; an ``InputError`` when it cannot be stored."""
    if note is None:
        return None
    if not isinstance(note, str):
        raise InputError(f"a note is a text; got {type(note).__name__}")
    if len(note) > LONGEST_NOTE:
        raise InputError(f"a note has at most {LONGEST_NOTE} characters; got {len(note)}")
    check_storable(note, "note")
    return note.strip() or None


def of_memory(memory: MemoryRecord) -> Reviewed:
    return Reviewed(
        id=memory.id, namespace=memory.namespace, question=memory.question, review=memory.review, memory=memory
    )


def of_use(use: UseRecord) -> Reviewed:
    return Reviewed(id=use.id, namespace=use.namespace, question=use.question, review=use.review, use=use)


def _is_use(id: str) -> bool:
    return id.startswith("use_")
