"""What key indexes have to learn from the database, in order. Knows no index; see ``feed_exact``, ``feed_durable``.

Every change of a memory raises its namespace's revision under a row lock, so revisions become visible in order
and without gaps: whoever has applied everything up to R continues at R + 1. An index in this process remembers
its R in memory, a durable one in the table of watermarks, written after the index has the change. Who is behind
the outbox's floor, where it was pruned, begins anew with the active keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from elm_agent.errors import IndexUnavailable, NotFound
from elm_agent.protocols import IndexEntry, KeyIndex
from elm_agent.records import KeyKind, MemoryState
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.rows import unpack
from elm_agent.storage.sql.schema import KeyRow, MemoryRow, NamespaceRow, OutboxRow

_Answer = TypeVar("_Answer")

BATCH = 500  # revisions, or rows, taken into memory at a time


class IndexMadeAnew(IndexUnavailable):
    """Another process dropped what this one knew of the index, and makes it anew; asking again helps."""


def once_more(ask: Callable[[], _Answer]) -> _Answer:
    """Ask again when another process has made the index anew. For what may be done twice."""
    try:
        return ask()
    except IndexMadeAnew:
        return ask()


class FedIndex(KeyIndex, Protocol):
    """A durable index, which can say that it lost everything.

    One that is shared raises ``IndexMadeAnew`` where a search meets what another process has dropped meanwhile.
    """

    @property
    def width_limit(self) -> int | None:
        """Wider keys are projected, so that their hits are rough; None: there is no limit."""
        ...

    @property
    def rebuilt(self) -> bool:
        """Whether it began anew and was not yet acknowledged. Survives a crash. Raises ``IndexUnavailable``."""
        ...

    def acknowledge_rebuild(self) -> None:
        """The feeder has forgotten how far it had come."""
        ...


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
        raise NotFound(f"namespace {namespace[:100]!r} is not in this bank: bind it to a model first")
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


def floor_of(session: Session, namespace: str) -> int:
    """The outbox holds every change after this revision; what it held before may be pruned."""
    return session.scalar(select(NamespaceRow.outbox_floor).where(NamespaceRow.name == namespace)) or 0


def active_keys(database: Database, namespace: str, kind: KeyKind) -> Iterator[list[IndexEntry]]:
    """The keys of all active memories, by id, page by page, each in a transaction of its own.

    Short ones: a long read would make every writer of an SQLite database wait. A memory that changes meanwhile is
    in the outbox, after the revision that was the newest before the first page. Two plain reads instead of a join,
    which a PostgreSQL without statistics plans as a loop within a loop.
    """
    last = ""
    while True:
        keys = select(KeyRow.memory_id, KeyRow.vector).where(KeyRow.namespace == namespace, KeyRow.kind == kind.value)
        page = keys.where(KeyRow.memory_id > last).order_by(KeyRow.memory_id).limit(BATCH)
        with database.read() as session:
            found = session.execute(page).all()
            if not found:
                return
            states = select(MemoryRow.id, MemoryRow.state).where(
                MemoryRow.namespace == namespace, MemoryRow.id.in_([memory_id for memory_id, _ in found])
            )
            active = {memory_id for memory_id, state in session.execute(states) if state == MemoryState.ACTIVE}
        yield [IndexEntry(memory_id, unpack(vector)) for memory_id, vector in found if memory_id in active]
        last = found[-1][0]
