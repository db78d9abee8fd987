"""Carries committed changes from the SQL outbox into an index that outlives the process.

How far it has come stands in the table of watermarks, written after the index has the change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from elm_agent.errors import IndexUnavailable, StoreBusy
from elm_agent.protocols import IndexCapability
from elm_agent.records import KeyKind, MemoryState
from elm_agent.storage.indexes.feed import (
    BATCH,
    Changes,
    FedIndex,
    active_keys,
    changes_between,
    floor_of,
    revision_of,
)
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.locks import only_one
from elm_agent.storage.sql.schema import KeyRow, MemoryRow, WatermarkRow

TURN_SECONDS = 60.0  # how long a feeder waits for another one of the same index

Progress = Callable[[int, int], None]
"""``progress(keys done, keys in all)``"""


class DurableFeed:
    """Feeds an index that outlives the process. One that is not shared is fed by the process that owns it."""

    def __init__(self, database: Database, index: FedIndex) -> None:
        self._database = database
        self._index = index
        self._shared = IndexCapability.SHARED in index.capabilities
        self._lock = threading.Lock()

    def position(self, namespace: str) -> tuple[int | None, int]:
        """(watermark, newest revision); no watermark when the outbox no longer has all that came since.

        Waits for nobody who feeds: what began anew and is being noticed has no watermark. Raises
        ``IndexUnavailable``.
        """
        anew = self._index.rebuilt
        if anew and self._lock.acquire(blocking=False):
            try:
                self._notice_rebuild()
                anew = False
            finally:
                self._lock.release()
        with self._database.read() as session:
            newest, mark = revision_of(session, namespace), self._watermark(session, namespace)
            return (None if anew or mark < floor_of(session, namespace) else mark), newest

    def feed(self, namespace: str, *, batches: int | None = None) -> int:
        """Apply at most ``batches`` batches (None: all there are), and return how many keys came or went.

        An index from before the outbox's floor is filled anew, but only when no number of batches is given; with
        a number nobody is waited for, and it is 0 while somebody else feeds: it is for a question in between.
        A crash between the index and the watermark repeats a batch, which changes nothing. Raises
        ``IndexUnavailable``.
        """
        applied = done = 0
        with self._turn(namespace, wait=batches is None) as ours:
            if not ours:
                return 0
            self._notice_rebuild()
            if batches is None and self._too_old(namespace):
                return self._refill(namespace, None)
            while (batches is None or done < batches) and (step := self._next(namespace)) is not None:
                upto, changes = step
                for kind, change in changes.items():
                    self._index.apply(namespace, kind, change.upsert, change.delete)
                    applied += len(change)
                self._advance(namespace, upto)
                done += 1
        return applied

    def refill(self, namespace: str, progress: Progress | None = None) -> int:
        """Make the index hold the active keys and nothing else, whatever it held; how many keys came or went.

        ``progress(keys done, keys in all)``. Raises ``IndexUnavailable``.
        """
        with self._turn(namespace):
            self._notice_rebuild()
            return self._refill(namespace, progress)

    def scrub(self, namespace: str) -> None:
        """Leave nothing of deleted keys in the index's files, as far as it can. Raises ``IndexUnavailable``."""
        self.feed(namespace)
        with self._turn(namespace):
            with self._database.read() as session:
                mark = self._watermark(session, namespace)
            self._advance(namespace, 0)  # what is left of it meanwhile, or if we die here, is not everything
            if self._index.scrub(namespace):
                self._notice_rebuild()
                self._refill(namespace, None)
            else:
                self._advance(namespace, mark)

    @contextmanager
    def _turn(self, namespace: str, *, wait: bool = True) -> Iterator[bool]:
        """One feeder at a time: an older batch applied after a younger one would bring back what went.

        Yields whether the turn is ours; always with ``wait``.
        """
        if not self._lock.acquire(blocking=wait):
            yield False
            return
        with ExitStack() as held:
            held.callback(self._lock.release)
            yield not self._shared or self._alone(held, namespace, wait=wait)

    def _alone(self, held: ExitStack, namespace: str, *, wait: bool) -> bool:
        """Among all processes, until ``held`` is closed."""
        name, seconds = f"index/{self._index.name}/{namespace}", TURN_SECONDS if wait else 0.0
        try:
            held.enter_context(only_one(self._database, name, seconds=seconds))
        except StoreBusy as error:
            if not wait:
                return False
            raise IndexUnavailable(f"the {self._index.name} index is being fed by somebody else: {error}") from error
        return True

    def _next(self, namespace: str) -> tuple[int, dict[KeyKind, Changes]] | None:
        with self._database.read() as session:
            newest, mark = revision_of(session, namespace), self._watermark(session, namespace)
            if mark >= newest or mark < floor_of(session, namespace):
                return None
            upto = min(mark + BATCH, newest)
            return upto, {kind: changes_between(session, namespace, kind, mark, upto) for kind in KeyKind}

    def _too_old(self, namespace: str) -> bool:
        with self._database.read() as session:
            return self._watermark(session, namespace) < floor_of(session, namespace)

    def _refill(self, namespace: str, progress: Progress | None) -> int:
        applied = 0
        with self._database.read() as session:
            newest, total = revision_of(session, namespace), _count(session, namespace)
        for kind in KeyKind:
            surplus = self._index.ids(namespace, kind)
            for entries in active_keys(self._database, namespace, kind):
                self._index.apply(namespace, kind, entries, ())
                surplus.difference_update(entry.memory_id for entry in entries)
                applied += len(entries)
                if progress is not None:
                    progress(applied, max(total, applied))
            self._index.apply(namespace, kind, (), sorted(surplus))
            applied += len(surplus)
        if newest:  # an empty namespace is not fed
            self._advance(namespace, newest)
        return applied

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


def fed_indexes(database: Database, namespace: str) -> dict[str, int]:
    """The watermark of every index that was fed with keys of the namespace; 0: it is being scrubbed."""
    query = select(WatermarkRow.index_name, WatermarkRow.revision).where(WatermarkRow.namespace == namespace)
    with database.read() as session:
        return dict(session.execute(query).tuples().all())


def _count(session: Session, namespace: str) -> int:
    memory = (MemoryRow.namespace == KeyRow.namespace) & (MemoryRow.id == KeyRow.memory_id)
    query = select(func.count()).select_from(KeyRow).join(MemoryRow, memory)
    return session.scalar(query.where(KeyRow.namespace == namespace, MemoryRow.state == MemoryState.ACTIVE)) or 0
