"""The log of retrievals: which memory was used for which answer, and what it did. Counts come from here."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, ScalarSelect, func, select, update
from sqlalchemy.orm import Session

from elm_agent.errors import NotFound
from elm_agent.protocols import Observer
from elm_agent.records import Effect, EventKind, Feedback, Review, UseOutcome, UseRecord
from elm_agent.storage.ledger.changes import Change, check_still_here, find_memory, lock_namespace
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.faults import Refused
from elm_agent.storage.sql.rows import sealed, use_record, use_values
from elm_agent.storage.sql.schema import MemoryRow, NamespaceRow, UseRow
from elm_agent.storage.vault.base import Vault
from elm_agent.storage.vault.guard import refuse_readable

ACTOR = "agent"
FEEDBACK_STEPS = ("feedback.before_commit", "feedback.committed")
USE_STEPS = ("use.before_commit", "use.committed", "outcome.before_commit", "outcome.committed")
"""Told to an observer, with the ``use_id``; a crash is tested at each of them."""


@dataclass(frozen=True, slots=True)
class Noted:
    """A use as it is after feedback, and as it was. ``changed``: whether it said something new."""

    use: UseRecord
    before: UseRecord

    @property
    def changed(self) -> bool:
        return (self.use.feedback, self.use.feedback_answer) != (self.before.feedback, self.before.feedback_answer)

    @property
    def replaced(self) -> bool:
        """Whether another word stood there before."""
        return self.changed and self.before.feedback is not None


class UseLog:
    """Every method is one short transaction."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    def record(self, use: UseRecord, tell: Observer) -> None:
        """Add one use; the same id twice is one use. One whose answer a person has chosen is an event, too.

        Raises ``NotFound`` for a memory that is not there, or a namespace that is not bound; ``VaultLocked``.
        """
        values = use_values(use, self._vault)
        chosen = use.review in (Review.APPROVED, Review.REJECTED)
        try:
            with self._database.write() as session:
                owner = lock_namespace(session, use.namespace) if chosen else None  # before its rows, as every event
                new = self._database.add_once(session, UseRow, values, ["namespace", "id"])
                if new and owner is not None:
                    change = Change(session, owner, ACTOR, self._database.now(session), self._vault)
                    note_choice(change, use)
                check_still_here(session, values["memory_namespace"])
                refuse_readable(session, self._vault, use.namespace)
                tell("use.before_commit", {"use_id": use.id})
        except Refused:
            self._check_bound(use.namespace)
            home = use.memory_namespace or use.namespace
            raise NotFound(f"no memory {use.memory_id[:80]!r} in namespace {home[:100]!r} to note a use of") from None
        tell("use.committed", {"use_id": use.id})

    def settle(self, namespace: str, use_id: str, outcome: UseOutcome, tell: Observer) -> tuple[str, str]:
        """Write down the outcome once it is known; the last word counts. Raises ``NotFound``.

        Returns namespace and id of the memory that was used.
        """
        statement = update(UseRow).where(UseRow.namespace == namespace, UseRow.id == use_id)
        with self._database.write() as session:
            used = session.execute(
                statement.values(outcome=outcome.value).returning(UseRow.memory_namespace, UseRow.memory_id)
            ).first()
            check_still_here(session, namespace)
            if used is None:
                raise NotFound(f"no use {use_id[:80]!r} in namespace {namespace[:100]!r}")
            tell("outcome.before_commit", {"use_id": use_id})
        tell("outcome.committed", {"use_id": use_id})
        return used.memory_namespace, used.memory_id

    def note_feedback(
        self,
        namespace: str,
        use_id: str,
        feedback: Feedback,
        *,
        answer: str | None,
        effect: Effect | None,
        tell: Observer,
    ) -> Noted:
        """Write down what the user said; the last word counts, the same word again changes nothing.

        Raises ``NotFound``, ``VaultLocked``.
        """
        with self._database.write() as session:
            row = find_use(session, namespace, use_id, lock=True)
            before = use_record(row, self._vault)
            if (before.feedback, before.feedback_answer) != (feedback, answer):
                refuse_readable(session, self._vault, namespace)
                row.feedback = feedback.value
                row.feedback_answer = sealed(self._vault, namespace, answer)
                row.feedback_effect = None if effect is None else effect.value
                row.feedback_at = self._database.now(session)
                session.flush()
                check_still_here(session, namespace)
            after = use_record(row, self._vault)
            tell("feedback.before_commit", {"use_id": use_id})
        tell("feedback.committed", {"use_id": use_id})
        return Noted(after, before)

    def get(self, namespace: str, use_id: str) -> UseRecord:
        """Raises ``NotFound``, also for a use of another namespace."""
        with self._database.read() as session:
            return use_record(find_use(session, namespace, use_id), self._vault)

    def _check_bound(self, namespace: str) -> None:
        with self._database.read() as session:
            if session.get(NamespaceRow, namespace) is None:
                raise NotFound(f"namespace {namespace[:100]!r} is not in this bank: bind it to a model first")

    def list(
        self, namespace: str, memory_id: str | None, limit: int | None, home: str | None = None
    ) -> list[UseRecord]:
        """Newest first."""
        mine = UseRow.namespace == namespace
        if home is not None:  # asked so that no planner walks through all uses of the namespace in the order of time
            mine = (func.coalesce(UseRow.namespace, "") == namespace) & (UseRow.memory_namespace == home)
        query = select(UseRow).where(mine)
        if memory_id is not None:
            query = query.where(UseRow.memory_id == memory_id)
        query = query.order_by(UseRow.created_at.desc(), UseRow.id.desc()).limit(limit)
        with self._database.read() as session:
            return [use_record(row, self._vault) for row in session.scalars(query)]


def find_use(session: Session, namespace: str, use_id: str, *, lock: bool = False) -> UseRow:
    row = session.get(UseRow, (namespace, use_id), with_for_update=lock or None)
    if row is None:
        raise NotFound(
            f"no use {use_id[:80]!r} in namespace {namespace[:100]!r}: `elm-agent ask` names it (use_...) when an "
            "answer had a memory, `elm-agent memories why ID` lists those of one"
        )
    return row


def note_choice(change: Change, use: UseRecord) -> None:
    """An event: a person chose between the two answers of a use, or took that back. Why they did stays with the use.

    Of the memory, or of the namespace alone where the memory is another's, which is only read.
    """
    detail = {"review": str(use.review), "use_id": use.id}
    if use.memory_namespace in ("", use.namespace):
        change.note(EventKind.REVIEWED, find_memory(change.session, use.namespace, use.memory_id), detail)
    else:
        of = {"memory_id": use.memory_id, "memory_namespace": use.memory_namespace}
        change.note(EventKind.REVIEWED, None, detail | of)


def count_uses(*conditions: ColumnElement[bool]) -> ScalarSelect[int]:
    """How many uses of the memory of the outer query fulfil ``conditions``: exact, by one index look-up."""
    mine = (UseRow.memory_namespace == MemoryRow.namespace) & (UseRow.memory_id == MemoryRow.id)
    return select(func.count()).where(mine, *conditions).correlate(MemoryRow).scalar_subquery()


USES = count_uses()
FIXED = count_uses(UseRow.outcome == UseOutcome.FIXED.value)
BROKEN = count_uses(UseRow.outcome == UseOutcome.BROKEN.value)
