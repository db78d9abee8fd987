"""Carries committed changes from the SQL outbox into key indexes, in order. Decides nothing about retrieval.

Every change of a memory raises its namespace's revision under a row lock, so revisions become visible in order
and without gaps: whoever has applied everything up to R continues at R + 1. An index in this process remembers
its R in memory, a durable one in the table of watermarks, written after the index has the change.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from elm_agent.errors import NotFound
from elm_agent.protocols import IndexEntry, KeyIndex
from elm_agent.records import KeyKind, MemoryState
from elm_agent.storage.database import Database
from elm_agent.storage.rows import unpack
from elm_agent.storage.schema import KeyRow, MemoryRow, NamespaceRow, OutboxRow, WatermarkRow

BATCH = 500  # revisions, or rows, taken into memory at a time


class FedIndex(KeyIndex, Protocol):
    """A durable index that can say that it lost everything."""

    @property
    def rebuilt(self) -> bool: ...

    def acknowledge_rebuild(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Changes:
    """The last word on each memory within a range of revisions."""

    upsert: list[IndexEntry]
    delete: list[str]

    def __len__(self) -> int:
        return len(self.upsert) + len(self.delete)


def revision_of(session: Session, namespace: str) -> int:
    """Raises ``NotFound`` for a namespace that is not in the bank."""
    revision = session.scalar(select(NamespaceRow.revision).where(NamespaceRow.name == namespace))
    if revision is None:
        raise NotFound(f"namespace {namespace!r} is not in this bank: bind it to a model first")
    return revision


def changes_between(session: Session, namespace: str, kind: KeyKind, after: int, upto: int) -> Changes:
    """What an index of ``kind`` at revision ``after`` lacks to be at ``upto``."""
    key = (KeyRow.namespace == namespace) & (KeyRow.kind == kind) & (KeyRow.memory_id == OutboxRow.memory_id)
    query = (
        select(OutboxRow.memory_id, OutboxRow.present, KeyRow.vector)
        .outerjoin(KeyRow, key)
        .where(OutboxRow.namespace == namespace, OutboxRow.revision > after, OutboxRow.revision <= upto)
        .where(OutboxRow.kind == kind)
        .order_by(OutboxRow.revision, OutboxRow.n)
    )
    last = {memory_id: vector if present else None for memory_id, present, vector in session.execute(query)}
    return Changes(
        [IndexEntry(memory_id, unpack(vector)) for memory_id, vector in last.items() if vector is not None],
        [memory_id for memory_id, vector in last.items() if vector is None],
    )


class ExactFeed:
    """Keeps an index of this process at the newest revision; the first use of a key kind loads its active keys."""

    def __init__(self, database: Database, index: KeyIndex) -> None:
        self._database = database
        self._index = index
        self._seen: dict[tuple[str, KeyKind], int] = {}
        self._lock = threading.Lock()

    def sync(self, namespace: str, kind: KeyKind) -> None:
        """Afterwards everything that was committed before the call is in the index."""
        with self._lock, self._database.read() as session:
            newest = revision_of(session, namespace)  # read first: what is loaded may be newer, never older
            seen = self._seen.get((namespace, kind))
            if seen is None:
                for entries in _active(session, namespace, kind):
                    self._index.apply(namespace, kind, entries, ())
            else:
                for start in range(seen, newest, BATCH):
                    changes = changes_between(session, namespace, kind, start, min(start + BATCH, newest))
                    self._index.apply(namespace, kind, changes.upsert, changes.delete)
            self._seen[namespace, kind] = newest


class DurableFeed:
    """Feeds an index that outlives the process. Only the process that owns the index may use it."""

    def __init__(self, database: Database, index: FedIndex) -> None:
        self._database = database
        self._index = index
        self._lock = threading.Lock()

    def position(self, namespace: str) -> tuple[int, int]:
        """(watermark, newest revision). Raises ``IndexUnavailable``."""
        with self._lock:
            self._notice_rebuild()
        with self._database.read() as session:
            newest = revision_of(session, namespace)
            return self._watermark(session, namespace), newest

    def feed(self, namespace: str, *, batches: int | None = None) -> int:
        """Apply at most ``batches`` batches (None: all there are), and return how many keys came or went.

        A crash between the index and the watermark repeats a batch, which changes nothing. Raises
        ``IndexUnavailable``.
        """
        applied = done = 0
        with self._lock:
            self._notice_rebuild()
            while (batches is None or done < batches) and (step := self._next(namespace)) is not None:
                upto, changes = step
                for kind, change in changes.items():
                    self._index.apply(namespace, kind, change.upsert, change.delete)
                    applied += len(change)
                self._advance(namespace, upto)
                done += 1
        return applied

    def _next(self, namespace: str) -> tuple[int, dict[KeyKind, Changes]] | None:
        with self._database.read() as session:
            newest, mark = revision_of(session, namespace), self._watermark(session, namespace)
            if mark >= newest:
                return None
            upto = min(mark + BATCH, newest)
            return upto, {kind: changes_between(session, namespace, kind, mark, upto) for kind in KeyKind}

    def _watermark(self, session: Session, namespace: str) -> int:
        row = session.get(WatermarkRow, (namespace, self._index.name))
        return 0 if row is None else row.revision

    def _advance(self, namespace: str, revision: int) -> None:
        with self._database.write() as session:
            session.merge(WatermarkRow(namespace=namespace, index_name=self._index.name, revision=revision))

    def _notice_rebuild(self) -> None:
        if self._index.rebuilt:
            with self._database.write() as session:
                session.execute(delete(WatermarkRow).where(WatermarkRow.index_name == self._index.name))
            self._index.acknowledge_rebuild()


def _active(session: Session, namespace: str, kind: KeyKind) -> Iterator[list[IndexEntry]]:
    """Two plain reads instead of a join, which a PostgreSQL without statistics plans as a loop within a loop."""
    memories = select(MemoryRow.id).where(
        MemoryRow.namespace == namespace, MemoryRow.state == MemoryState.ACTIVE.value
    )
    active = set(session.scalars(memories))
    keys = select(KeyRow.memory_id, KeyRow.vector).where(KeyRow.namespace == namespace, KeyRow.kind == kind.value)
    for found in session.execute(keys, execution_options={"yield_per": BATCH}).partitions():
        yield [IndexEntry(memory_id, unpack(vector)) for memory_id, vector in found if memory_id in active]
