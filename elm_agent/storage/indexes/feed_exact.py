"""Keeps the exact index of this process at the newest revision, from a snapshot where there is a good one.

A snapshot is trusted when the event of its revision is the one that the database has, and when the outbox still
holds everything since. What is purged must leave every file, on every machine: the process that purges calls
``scrub``, and any other process notices when it meets the purge in the outbox.
"""

from __future__ import annotations

import logging
import threading

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from elm_agent.errors import StorageError
from elm_agent.records import KeyKind
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.indexes.feed import BATCH, active_keys, changes_between, floor_of, revision_of
from elm_agent.storage.indexes.snapshots import Mark
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.paging import some
from elm_agent.storage.sql.schema import EventRow, MemoryRow

_log = logging.getLogger(__name__)


class ExactFeed:
    """Keeps the index of this process at the newest revision; it begins with a snapshot, or with the active keys."""

    def __init__(self, database: Database, index: ExactIndex) -> None:
        self._database = database
        self._index = index
        self._seen: dict[tuple[str, KeyKind], int] = {}
        self._lock = threading.Lock()

    def sync(self, namespace: str, kind: KeyKind) -> None:
        """Afterwards everything that was committed before the call is in the index."""
        with self._lock:
            with self._database.read() as session:
                newest = _newest(session, namespace)  # read first: what is loaded may be newer, never older
                floor = floor_of(session, namespace)
            seen = self._seen.get((namespace, kind))
            if seen == newest.revision:
                return
            if seen is None or seen < floor:
                seen = self._restored(namespace, kind)
            if seen is None or not self._advanced(namespace, kind, seen, newest.revision):
                self._load(namespace, kind, newest)
            self._seen[namespace, kind] = newest.revision
            due = self._index.due(namespace, kind)
        if due:
            self._keep(namespace, kind, newest)

    def scrub(self, namespace: str) -> None:
        """Let no snapshot on this machine hold a deleted key; to be called when the deletion is committed."""
        with self._lock:
            self._index.scrub(namespace)
            for kind in KeyKind:
                self._seen.pop((namespace, kind), None)

    def _restored(self, namespace: str, kind: KeyKind) -> int | None:
        """The revision of the snapshot that the index has begun with. No transaction is open while files are read."""

        def trusted(mark: Mark) -> bool:
            """Of this history of this bank, and not so old that the outbox cannot bring it up to date."""
            with self._database.read() as session:
                return mark.revision >= floor_of(session, namespace) and mark == _mark_at(
                    session, namespace, mark.revision
                )

        try:
            mark = self._index.restore(namespace, kind, trusted)
        except StorageError as error:
            _log.warning("namespace %s: %s. The keys are read from the database", namespace, error)
            return None
        return mark.revision if mark is not None else None

    def _advanced(self, namespace: str, kind: KeyKind, seen: int, newest: int) -> bool:
        """Bring the index up to date by the outbox; False when it has to be loaded from nothing.

        In short reads, each of which looks again whether the outbox still holds what comes next.
        """
        for start in range(seen, newest, BATCH):
            with self._database.read() as session:
                if start < floor_of(session, namespace):
                    return False
                changes = changes_between(session, namespace, kind, start, min(start + BATCH, newest))
                if _purged(session, namespace, changes.delete):
                    return False
            self._index.apply(namespace, kind, changes.upsert, changes.delete)
        return True

    def _load(self, namespace: str, kind: KeyKind, newest: Mark) -> None:
        """From nothing. A snapshot of before a purge, of whatever process, may hold the purged key: it goes.

        With it go those of the other kinds, but only then: or two kinds in use would take turns in deleting.
        """
        if self._index.restore(namespace, kind, lambda mark: mark == newest) is not None:
            return
        if (namespace, kind) in self._seen or self._index.kept(namespace, kind):
            self._index.scrub(namespace)
            for other in KeyKind:
                self._seen.pop((namespace, other), None)
        for entries in active_keys(self._database, namespace, kind):
            self._index.apply(namespace, kind, entries, ())

    def _keep(self, namespace: str, kind: KeyKind, mark: Mark) -> None:
        """A snapshot saves time, so one that cannot be written costs nothing else."""

        def current() -> bool:
            """Nothing was purged since: the one who purges scrubs after the commit, and waits for our lock."""
            with self._database.read() as session:
                return revision_of(session, namespace) == mark.revision

        try:
            with self._lock:
                if self._seen.get((namespace, kind)) == mark.revision:
                    self._index.keep(namespace, kind, mark, current)
        except StorageError as error:
            _log.warning("namespace %s: %s", namespace, error)


def _newest(session: Session, namespace: str) -> Mark:
    return _mark_at(session, namespace, revision_of(session, namespace))


def _mark_at(session: Session, namespace: str, revision: int) -> Mark:
    """The digest of the event that made it tells this history from another with the same revision."""
    query = select(EventRow.digest).where(EventRow.namespace == namespace, EventRow.revision == revision)
    return Mark(revision, session.scalar(query) or "none")


def _purged(session: Session, namespace: str, memory_ids: list[str]) -> bool:
    """Whether one of these is not even a row any more, so that no file may hold its key."""
    for ids in some(memory_ids):
        query = select(func.count()).where(MemoryRow.namespace == namespace, MemoryRow.id.in_(ids))
        if session.scalar(query) != len(ids):
            return True
    return False
