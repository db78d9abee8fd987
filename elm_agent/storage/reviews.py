"""What waits for a person, and what becomes of their word: of memories that are to serve, and of answers.

Each decision is one transaction with one event. It may be taken back, and then waits again; who decides what somebody
else has decided meanwhile is told so. Knows nothing of models, routing or who asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from elm_agent.errors import ChangedMeanwhile, InputError
from elm_agent.records import (
    AWAITS_REVIEW,
    Effect,
    EventKind,
    Feedback,
    MemoryRecord,
    MemoryState,
    Review,
    UseRecord,
)
from elm_agent.storage.indexes.feed import revision_of
from elm_agent.storage.ledger.changes import changing, check_unchanged, find_memory
from elm_agent.storage.lifecycle import transition
from elm_agent.storage.reader import read_record
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.rows import memory_record, sealed, use_record
from elm_agent.storage.sql.schema import MemoryRow, UseRow
from elm_agent.storage.uses import BROKEN, FIXED, USES, find_use, note_choice
from elm_agent.storage.vault.base import Vault

DECIDED = (Review.APPROVED, Review.REJECTED)
_Table = type[MemoryRow] | type[UseRow]
_TABLES: tuple[_Table, ...] = (MemoryRow, UseRow)
_LOOK = "`elm-agent review list` shows what waits"


@dataclass(frozen=True, slots=True)
class Waiting:
    """How much waits in one namespace."""

    memories: int = 0
    answers: int = 0


class Reviews:
    """``changed(namespace)`` is called after a memory came or went; ``used(namespace, home, memory id)`` after a word
    on an answer.
    """

    def __init__(
        self,
        database: Database,
        vault: Vault,
        *,
        changed: Callable[[str], None],
        used: Callable[[str, str, str], None],
    ) -> None:
        self._database = database
        self._vault = vault
        self._changed = changed
        self._used = used

    # --- looking ----------------------------------------------------------------------------------------

    def waiting(self) -> dict[str, Waiting]:
        """By namespace; those where nothing waits are not in it."""
        found: dict[str, list[int]] = {}
        with self._database.read() as session:
            for n, table in enumerate(_TABLES):
                query = select(table.namespace, func.count()).where(table.review == Review.WAITING.value)
                for namespace, count in session.execute(query.group_by(table.namespace)):
                    found.setdefault(namespace, [0, 0])[n] = count
        return {namespace: Waiting(*counts) for namespace, counts in sorted(found.items())}

    def count(self, namespace: str) -> Waiting:
        """Raises ``NotFound``."""
        with self._database.read() as session:
            revision_of(session, namespace)
            return Waiting(*(_count(session, table, namespace) for table in _TABLES))

    def memories(
        self, namespace: str, review: Review = Review.WAITING, *, after: str | None = None, limit: int | None = None
    ) -> list[MemoryRecord]:
        """What waits, oldest first; or what was decided, newest first. ``after``: only those beyond this id.

        Raises ``NotFound``.
        """
        query = select(MemoryRow, USES, FIXED, BROKEN).where(
            MemoryRow.namespace == namespace, MemoryRow.review == review.value
        )
        if after is not None:
            query = query.where(MemoryRow.id > after if review is Review.WAITING else MemoryRow.id < after)
        query = query.order_by(MemoryRow.id if review is Review.WAITING else MemoryRow.id.desc()).limit(limit)
        with self._database.read() as session:
            revision_of(session, namespace)
            return [memory_record(row, self._vault, *counts) for row, *counts in session.execute(query)]

    def answers(
        self, namespace: str, review: Review = Review.WAITING, *, after: str | None = None, limit: int | None = None
    ) -> list[UseRecord]:
        """Uses of memories whose answer waits, or was decided about; see ``memories``."""
        query = select(UseRow).where(UseRow.namespace == namespace, UseRow.review == review.value)
        if after is not None:
            query = query.where(UseRow.id > after if review is Review.WAITING else UseRow.id < after)
        query = query.order_by(UseRow.id if review is Review.WAITING else UseRow.id.desc()).limit(limit)
        with self._database.read() as session:
            revision_of(session, namespace)
            return [use_record(row, self._vault) for row in session.scalars(query)]

    # --- memories ---------------------------------------------------------------------------------------

    def decide_memory(
        self,
        namespace: str,
        memory_id: str,
        verdict: Review,
        *,
        actor: str,
        note: str | None = None,
        expected: int | None = None,
    ) -> MemoryRecord:
        """APPROVED: it serves from now on. REJECTED: it is retired. ``note``: why. ``expected``: see ``transition``.

        Raises ``NotFound``; ``InputError`` when it does not wait; ``ChangedMeanwhile`` when it does no longer.
        """
        _check_verdict(verdict)
        with changing(self._database, namespace, actor=actor, vault=self._vault) as change:
            memory = find_memory(change.session, namespace, memory_id)
            check_unchanged(memory, expected)
            _check_waiting(f"memory {memory_id}", memory.review)
            reason = note or (None if verdict is Review.APPROVED else "rejected by a review")
            to = MemoryState.ACTIVE if verdict is Review.APPROVED else MemoryState.RETIRED
            transition(change, memory, to, reason, {"review": verdict.value})
            memory.review = verdict.value
            record = read_record(change.session, namespace, memory_id, self._vault)
        self._changed(namespace)
        return record

    def reopen_memory(
        self, namespace: str, memory_id: str, *, actor: str, expected: int | None = None
    ) -> MemoryRecord:
        """Take a decision back: it is a candidate again, and waits. Raises as ``decide_memory``."""
        with changing(self._database, namespace, actor=actor, vault=self._vault) as change:
            memory = find_memory(change.session, namespace, memory_id)
            check_unchanged(memory, expected)
            _check_decided(f"memory {memory_id}", memory.review)
            was, memory.state = memory.state, MemoryState.CANDIDATE.value
            memory.state_since, memory.review = change.now, Review.WAITING.value
            memory.reason = sealed(self._vault, namespace, AWAITS_REVIEW)
            moved = {"from": was, "to": memory.state, "state": memory.state, "review": memory.review}
            change.note(EventKind.GATED, memory, moved, text=AWAITS_REVIEW, reindex=True)
            record = read_record(change.session, namespace, memory_id, self._vault)
        self._changed(namespace)
        return record

    # --- answers ----------------------------------------------------------------------------------------

    def decide_answer(
        self, namespace: str, use_id: str, verdict: Review, *, actor: str, note: str | None = None
    ) -> UseRecord:
        """APPROVED: the memory's answer is the right one. REJECTED: the plain one is. Counts as feedback on the use.

        Raises ``NotFound``; ``InputError`` when nobody was asked; ``ChangedMeanwhile`` when somebody has decided.
        """
        _check_verdict(verdict)
        with changing(self._database, namespace, actor=actor, vault=self._vault) as change:
            row = find_use(change.session, namespace, use_id, lock=True)
            _check_waiting(f"use {use_id}", row.review)
            before = use_record(row, self._vault)
            word, right, effect = word_of(before, verdict)
            row.review, row.feedback, row.feedback_effect = verdict.value, word.value, effect.value
            row.review_note = sealed(self._vault, namespace, note)
            row.feedback_answer = sealed(self._vault, namespace, right)
            row.feedback_at = change.now
            change.session.flush()
            decided = use_record(row, self._vault)
            note_choice(change, decided)
        self._used(namespace, decided.memory_namespace or namespace, decided.memory_id)
        return decided

    def reopen_answer(self, namespace: str, use_id: str, *, actor: str) -> UseRecord:
        """Take a decision back: it says nothing of the memory any more, and waits again.

        Raises as ``decide_answer``.
        """
        with changing(self._database, namespace, actor=actor, vault=self._vault) as change:
            row = find_use(change.session, namespace, use_id, lock=True)
            _check_decided(f"use {use_id}", row.review)
            row.review, row.review_note = Review.WAITING.value, None
            row.feedback = row.feedback_answer = row.feedback_effect = row.feedback_at = None
            reopened = use_record(row, self._vault)
            note_choice(change, reopened)
            return reopened


def word_of(use: UseRecord, verdict: Review) -> tuple[Feedback, str | None, Effect]:
    """What a choice between the two answers says as feedback: of the one returned, the right one, of the memory."""
    chosen = use.memory_answer if verdict is Review.APPROVED else use.zero_shot_answer
    effect = Effect.HELPED if verdict is Review.APPROVED else Effect.HURT
    if use.answer == chosen:
        return Feedback.RIGHT, None, effect
    return Feedback.WRONG, chosen, effect


def _count(session: Session, table: _Table, namespace: str) -> int:
    waits = table.namespace == namespace, table.review == Review.WAITING.value
    return session.scalar(select(func.count()).where(*waits)) or 0


def _check_verdict(verdict: Review) -> None:
    if verdict not in DECIDED:
        raise InputError(f"a verdict is approved or rejected; got {verdict}")


def _check_waiting(what: str, review: str | None) -> None:
    if review in DECIDED:
        raise ChangedMeanwhile(f"{what} was {review} by somebody already: nothing was done; `elm-agent review undo`")
    if review is None:
        raise InputError(f"{what} does not wait for a review: {_LOOK}")


def _check_decided(what: str, review: str | None) -> None:
    if review == Review.WAITING:
        raise ChangedMeanwhile(f"{what} waits for a review already: nothing was done; {_LOOK}")
    if review is None:
        raise InputError(f"{what} was not decided by a review, or was changed since: there is nothing to take back")
