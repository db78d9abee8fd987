"""Between a stored tensor and the row that names it: no purge of the same bytes may come in between.

No tensor store is called within a transaction, for stores may be slow and writers take turns. So both sides look
before and after:

    who stores    sees that no purge of these bytes is unfinished, or deletes them itself; puts them; and in the
                  transaction that names them sees that none was purged since its first look, or begins anew
    who deletes   does so after the purge's commit, and asks once more at the last moment, when no ``put`` of the same
                  bytes can end: the deletion is still wanted, and no memory names them

Whoever asked before the other's first look deletes before the other's ``put`` ends, which then stores anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from elm_agent.errors import NotFound, StoreBusy
from elm_agent.protocols import Observer, TensorStore
from elm_agent.records import EventKind
from elm_agent.storage.ledger.changes import check_here, check_still_here
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.paging import some
from elm_agent.storage.sql.schema import EventRow, MemoryRow, NamespaceRow, TombstoneRow
from elm_agent.storage.tensors.names import digest_of_bytes

ATTEMPTS = 5
DELETED = ""
"""A tombstone's ``pending`` once the tensor is gone, and indexes and journals may not be clean yet."""

UNNAMED_SECONDS = 3600.0  # for which a tensor that no memory names is left alone: it may be about to be named
_WITHIN = timedelta(seconds=UNNAMED_SECONDS / 2)  # from the first look to the commit; clocks differ by less

Stone = tuple[str, str]
"""(memory id, digest): what a tombstone says is still to be deleted."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Tensors that are durable and not named yet. ``revision``, ``at``: of the look before they were put."""

    digests: frozenset[str]
    revision: int
    at: datetime


def store(
    database: Database, tensors: TensorStore, namespace: str, blobs: Sequence[bytes], observe: Observer | None = None
) -> Stored:
    """Put ``blobs``; in no transaction. Raises ``NotFound``, ``BankMoved``, ``StorageError``."""
    digests = frozenset(map(digest_of_bytes, blobs))
    for _ in range(ATTEMPTS):
        revision, at, doomed = _look(database, namespace, digests)
        if not doomed:
            for blob in blobs:
                tensors.put(namespace, blob, observe)
            return Stored(digests, revision, at)
        delete_purged(database, tensors, namespace, doomed)
        _mark_deleted(database, namespace, doomed)
    raise busy(namespace)


def stands(session: Session, namespace: str, stored: Stored, now: datetime) -> bool:
    """Whether the tensors may be named: nobody may have deleted them since. Asked with the namespace's row held."""
    since = EventRow.namespace == namespace, EventRow.revision > stored.revision
    purged = select(EventRow.detail).where(*since, EventRow.kind == EventKind.PURGED.value)
    if now - stored.at > _WITHIN:
        return False
    return not any(detail.get("tensor_digest") in stored.digests for detail in session.scalars(purged))


def busy(namespace: str) -> StoreBusy:
    """After ``ATTEMPTS``."""
    return StoreBusy(
        f"prompts that are being stored are purged in namespace {namespace[:100]!r} again and again: run the same "
        "command again when that is over"
    )


def unfinished(session: Session, namespace: str) -> list[Stone]:
    """What is purged and not cleaned up yet."""
    query = select(TombstoneRow.memory_id, TombstoneRow.pending).where(
        TombstoneRow.namespace == namespace, TombstoneRow.pending.is_not(None)
    )
    return [(memory_id, pending) for memory_id, pending in session.execute(query) if pending is not None]


def delete_purged(database: Database, tensors: TensorStore, namespace: str, stones: Sequence[Stone]) -> None:
    """Delete the tensors of purged memories, but for those that a memory names by now. In no transaction."""
    for memory_id, digest in stones:
        if digest != DELETED:
            tensors.delete(namespace, digest, unless=partial(_stays, database, namespace, memory_id, digest))


def is_named(database: Database, namespace: str, digest: str) -> bool:
    """Whether a memory has this tensor."""
    with database.read() as session:
        return _named(session, namespace, digest)


def _look(database: Database, namespace: str, digests: frozenset[str]) -> tuple[int, datetime, list[Stone]]:
    with database.read() as session:
        row = session.get(NamespaceRow, namespace)
        if row is None:
            raise NotFound(f"namespace {namespace[:100]!r} is not in this bank: bind it to a model first")
        check_here(row)
        doomed = [stone for stone in unfinished(session, namespace) if stone[1] in digests]
        return row.revision, database.now(session), doomed


def _mark_deleted(database: Database, namespace: str, stones: Sequence[Stone]) -> None:
    digests = {digest for _, digest in stones}
    with database.write() as session:
        for ids in some([memory_id for memory_id, _ in stones]):
            mine = TombstoneRow.namespace == namespace, TombstoneRow.memory_id.in_(ids)
            done = update(TombstoneRow).where(*mine, TombstoneRow.pending.in_(digests))
            session.execute(done.values(pending=DELETED))
        check_still_here(session, namespace)


def _stays(database: Database, namespace: str, memory_id: str, digest: str) -> bool:
    """Whether somebody else has finished this deletion, moved the bank away, or named the same bytes."""
    with database.read() as session:
        stone = session.get(TombstoneRow, (namespace, memory_id))
        row = session.get(NamespaceRow, namespace)
        if stone is None or stone.pending != digest or row is None or row.moved_to is not None:
            return True
        return _named(session, namespace, digest)


def _named(session: Session, namespace: str, digest: str) -> bool:
    named = select(MemoryRow.id).where(MemoryRow.namespace == namespace, MemoryRow.tensor_digest == digest)
    return session.scalar(named.limit(1)) is not None
