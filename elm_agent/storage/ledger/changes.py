"""One change of one memory inside a transaction: the next revision, an event, and work for the indexes.

Every change goes through here, so that events and outbox have no gaps. The namespace's row stays locked until
the transaction ends: changes of one namespace happen one after the other, and become visible in that order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from elm_agent.errors import BankMoved, ChangedMeanwhile, NotFound
from elm_agent.records import EventKind, KeyKind, MemoryState
from elm_agent.storage.ledger.chain import bind_note, link
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import EventRow, KeyRow, MemoryRow, NamespaceRow, OutboxRow, TombstoneRow
from elm_agent.storage.vault.base import Vault
from elm_agent.storage.vault.guard import refuse_readable


def lock_namespace(session: Session, namespace: str, *, alone: bool = False) -> NamespaceRow:
    """The namespace's row, held until the transaction ends. Raises ``NotFound``, or ``BankMoved``.

    Foreign keys may still point at it (FOR NO KEY UPDATE): queueing a job does not wait for a publication.
    ``alone``: against them, too; nobody else writes anything into the namespace meanwhile.
    """
    query = select(NamespaceRow).where(NamespaceRow.name == namespace).with_for_update(key_share=not alone)
    row = session.scalars(query).first()
    if row is None:
        raise NotFound(f"namespace {namespace[:100]!r} is not in this bank: bind it to a model first")
    check_here(row)
    return row


def check_here(row: NamespaceRow) -> None:
    """Raise ``BankMoved`` when the namespace was moved to another bank."""
    if row.moved_to is not None:
        raise BankMoved(f"namespace {row.name!r} was moved to {row.moved_to}: open the bank there")


def check_still_here(session: Session, namespace: str) -> None:
    """For a change that does not hold the namespace's row: asked after it was written, before the commit.

    A move waits for writers that came first; who waited for the move sees here that it took place.
    """
    query = select(NamespaceRow).where(NamespaceRow.name == namespace).execution_options(populate_existing=True)
    if (row := session.scalars(query).first()) is not None:
        check_here(row)


def check_not_moved(session: Session) -> None:
    """Raise ``BankMoved`` when the bank is elsewhere: a new namespace here would be alone."""
    gone = session.scalars(select(NamespaceRow).where(NamespaceRow.moved_to.is_not(None)).limit(1)).first()
    if gone is not None:
        check_here(gone)


def find_memory(session: Session, namespace: str, memory_id: str, *, lock: bool = False) -> MemoryRow:
    """Raises ``NotFound``, also for a memory of another namespace.

    ``lock``: as it is now, held against who is about to use it or to seal it anew; neither holds the namespace.
    """
    row = session.get(MemoryRow, (namespace, memory_id), with_for_update=lock or None, populate_existing=lock)
    if row is None:
        if (gone := session.get(TombstoneRow, (namespace, memory_id))) is not None:
            raise NotFound(f"memory {memory_id} was purged on {gone.purged_at:%Y-%m-%d} by {gone.actor}; it is gone")
        raise NotFound(
            f"no memory {memory_id[:80]!r} in namespace {namespace[:100]!r}: `elm-agent memories list` shows all"
        )
    return row


def check_unchanged(memory: MemoryRow, expected: int | None) -> None:
    """Raise ``ChangedMeanwhile`` unless the memory's revision is ``expected``; None: whatever it is."""
    if expected is not None and memory.revision != expected:
        raise ChangedMeanwhile(
            f"memory {memory.id} was changed on {memory.updated_at:%Y-%m-%d %H:%M:%S} UTC, since you looked at it "
            f"(revision {memory.revision}, yours was {expected}), and is {memory.state} now: nothing was done; look "
            "again"
        )


@dataclass(frozen=True, slots=True)
class Change:
    """A transaction that changes one namespace, whose row it holds. Made by ``changing``."""

    session: Session
    namespace: NamespaceRow
    actor: str
    now: datetime
    vault: Vault

    def note(
        self,
        kind: EventKind,
        memory: MemoryRow | None = None,
        detail: dict[str, Any] | None = None,
        *,
        text: str | None = None,
        reindex: bool = False,
    ) -> int:
        """Append one event, tell the indexes with ``reindex`` if the memory is active, and return the revision.

        ``detail``: hashed and kept for ever, so ids, digests, states and counts only. ``text``: free, and erasable.
        """
        revision = self.append(kind, memory.id if memory is not None else None, detail or {}, text=text)
        if memory is not None:
            memory.revision = revision
            memory.updated_at = self.now
            if reindex:
                self.session.flush()
                self.tell_indexes(memory.id, present=memory.state == MemoryState.ACTIVE)
        return revision

    def append(
        self, kind: EventKind, memory_id: str | None, detail: dict[str, Any], *, text: str | None = None
    ) -> int:
        """The event alone; ``note`` is for memories that have a row."""
        self.session.add(EventRow(**self.linked(kind, memory_id, detail, text=text)))
        return self.namespace.revision

    def linked(
        self, kind: EventKind, memory_id: str | None, detail: dict[str, Any], *, text: str | None = None
    ) -> dict[str, Any]:
        """The columns of the next event, which the caller inserts, in this order: many at once are quicker so."""
        row = self.namespace
        row.revision += 1
        salt, digest = bind_note(text) if text is not None else (None, None)
        row.head = link(
            row.head,
            namespace=row.name,
            revision=row.revision,
            kind=kind.value,
            memory_id=memory_id,
            actor=self.actor,
            detail=detail,
            note_digest=digest,
            created_at=self.now,
        )
        return {
            "namespace": row.name,
            "revision": row.revision,
            "kind": kind.value,
            "memory_id": memory_id,
            "actor": self.actor,
            "detail": detail,
            "note": None if text is None else self.vault.seal(row.name, text),
            "salt": None if salt is None else self.vault.seal(row.name, salt),  # else a short note could be guessed
            "note_digest": digest,
            "digest": row.head,
            "created_at": self.now,
        }

    def tell_indexes(self, memory_id: str, *, present: bool) -> None:
        """Work for every index, at the revision of the last event."""
        name = self.namespace.name
        every = [kind.value for kind in KeyKind]  # named, so that the primary key finds them
        keys = select(KeyRow.kind).where(
            KeyRow.namespace == name, KeyRow.kind.in_(every), KeyRow.memory_id == memory_id
        )
        at = {"namespace": name, "revision": self.namespace.revision, "memory_id": memory_id}
        for n, key_kind in enumerate(sorted(self.session.scalars(keys))):
            self.session.add(OutboxRow(**at, n=n, kind=KeyKind(key_kind).value, present=present))


@contextmanager
def changing(database: Database, namespace: str, *, actor: str, vault: Vault) -> Iterator[Change]:
    """One transaction that changes ``namespace``. Raises ``NotFound``, ``BankMoved``, ``VaultLocked``."""
    with database.write() as session:
        row = lock_namespace(session, namespace)
        refuse_readable(session, vault, namespace)
        yield Change(session, row, actor, database.now(session), vault)
