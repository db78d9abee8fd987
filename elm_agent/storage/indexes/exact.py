"""Exact nearest keys: every key of a namespace and kind is scanned. Knows nothing of SQL.

With a directory, the bulk of the keys is a snapshot in a file, mapped into memory and shared by all processes, and
only what changed since lies in this process (see ``snapshots``); without one everything does. Measured on two
cores: 10,000 keys of width 14,336 in 42 ms, 100,000 of width 1,024 in 17 to 39 ms. So this is the default, and
another index pays only far above that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from elm_agent.protocols import IndexCapability, IndexEntry
from elm_agent.records import Hit, KeyKind, Vector
from elm_agent.storage.indexes.key_table import KeyTable, check_vector
from elm_agent.storage.indexes.snapshots import Mark, Snapshots

_KEEP_ABOVE = 1000  # changes worth a new snapshot; below, they are read from SQL in a moment
_KEEP_SHARE = 0.1  # ... and this part of the keys, so that a large snapshot is not rewritten all the time


class ExactIndex:
    """A ``KeyIndex`` that scans everything. Upserts apply before deletions.

    ``directory``: where snapshots are kept. Deleting it costs nothing but time. ``keep_above``: how many changes
    are worth a new snapshot.
    """

    name = "exact"
    capabilities = frozenset(
        {IndexCapability.BASE, IndexCapability.EXACT, IndexCapability.WIDE, IndexCapability.ERASES}
    )

    def __init__(self, directory: Path | None = None, *, keep_above: int = _KEEP_ABOVE) -> None:
        self.directory = directory
        self._snapshots = Snapshots(directory) if directory is not None else None
        self.keep_above = keep_above
        self._tables: dict[tuple[str, KeyKind], KeyTable] = {}
        self._lock = threading.RLock()

    def apply(self, namespace: str, kind: KeyKind, upsert: Iterable[IndexEntry], delete: Iterable[str]) -> None:
        """See ``KeyIndex``. Raises ``InputError`` for a vector of another dtype or width; then nothing changed."""
        entries, gone = list(upsert), list(delete)
        with self._lock:
            table = self._tables.get((namespace, kind))
            if table is None:
                if not entries:
                    return
                table = KeyTable(check_vector(entries[0].vector).shape[0])
            for entry in entries:
                check_vector(entry.vector, table.width)
            self._tables[namespace, kind] = table
            for entry in entries:
                table.put(entry.memory_id, entry.vector)
            for memory_id in gone:
                table.remove(memory_id)

    def search(self, namespace: str, kind: KeyKind, query: Vector, k: int) -> list[Hit]:
        """See ``KeyIndex``. Raises ``InputError`` when the query does not fit the keys."""
        with self._lock:
            table = self._tables.get((namespace, kind))
            if table is None or not len(table) or k < 1:
                return []
            return table.nearest(check_vector(query, table.width), k)

    def ids(self, namespace: str, kind: KeyKind) -> set[str]:
        with self._lock:
            table = self._tables.get((namespace, kind))
            return set(table.ids()) if table else set()

    def restore(self, namespace: str, kind: KeyKind, trusted: Callable[[Mark], bool]) -> Mark | None:
        """Begin with the newest snapshot whose mark is ``trusted``; None: there is none, the table is empty."""
        found = self._snapshots.newest(namespace, kind, trusted) if self._snapshots is not None else None
        with self._lock:
            self._tables.pop((namespace, kind), None)
            if found is not None:
                self._tables[namespace, kind] = KeyTable(found.keys.shape[1], found.ids, found.keys)
        return found.mark if found is not None else None

    def kept(self, namespace: str, kind: KeyKind) -> bool:
        """Whether there is any snapshot, of whatever age."""
        return self._snapshots is not None and self._snapshots.any(namespace, kind)

    def due(self, namespace: str, kind: KeyKind) -> bool:
        """Whether so much has changed since the snapshot that a new one pays."""
        table = self._tables.get((namespace, kind))
        if self._snapshots is None or table is None or not len(table):
            return False
        return table.changes > max(self.keep_above, _KEEP_SHARE * len(table))

    def keep(self, namespace: str, kind: KeyKind, mark: Mark, current: Callable[[], bool]) -> None:
        """Write a snapshot of what is here, which is the state at ``mark``, and go on from it.

        ``current``: asked under the lock that ``scrub`` takes too; False: nothing is written after all.
        """
        with self._lock:
            table = self._tables.get((namespace, kind))
            if self._snapshots is None or table is None or not len(table):
                return
            ids = list(table.ids())
            written = self._snapshots.write(namespace, kind, mark, ids, table.rows(), table.width, current)
            if written is not None:
                self._tables[namespace, kind] = KeyTable(table.width, written.ids, written.keys)

    def examine(self, *, repair: bool) -> Iterator[tuple[Path, bool]]:
        """Every snapshot, and whether it is what was written; with ``repair`` others are deleted. For ``doctor``."""
        if self._snapshots is not None:
            yield from self._snapshots.examine(repair=repair)

    def scrub(self, namespace: str) -> bool:
        """Delete the snapshots of the namespace and forget its keys: both are made anew at the next search."""
        with self._lock:
            for kind in KeyKind:
                self._tables.pop((namespace, kind), None)
            if self._snapshots is not None:
                self._snapshots.scrub(namespace)
        return True

    def wipe(self) -> None:
        """Forget every key and delete every snapshot."""
        with self._lock:
            self._tables.clear()
            if self._snapshots is not None:
                self._snapshots.wipe()

    def close(self) -> None:
        """Let go of everything in memory; snapshots stay."""
        with self._lock:
            self._tables.clear()


__all__ = ["ExactIndex", "check_vector"]
