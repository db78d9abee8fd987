"""The tensors of a bank brought into another store, each checked by its digest. Reads rows to find digests."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from sqlalchemy import select, tuple_

from elm_agent.errors import StorageError, TensorCorrupt, TensorMissing
from elm_agent.protocols import TensorStore
from elm_agent.records import EventKind
from elm_agent.storage.keeping import is_named
from elm_agent.storage.moving.rows import PAGE, Paged, Read
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import EventRow, MemoryRow

Named = tuple[str, str]
"""(namespace, digest)."""


class TensorCopy:
    """``whole``: read back from the target in this run, and right. ``missing``: the source has not got it either."""

    def __init__(self, source: TensorStore, target: TensorStore, names: Collection[str], paged: Paged) -> None:
        self.whole: set[Named] = set()
        self.missing: set[Named] = set()
        self._source, self._target = source, target
        self._names = frozenset(names)
        self._paged = paged
        self._present: dict[str, set[str]] = {}

    def once(self, read: Read) -> int:
        """One pass over the memories; how many tensors were put. Content never changes under a digest, so what was
        found whole is not read again."""
        put = 0
        self.missing.clear()
        for page in self._named(read):
            put += sum(self._bring(*named) for named in page if named not in self.whole)
            self._paged("tensors", len(page))
        return put

    def count(self, read: Read) -> int:
        """How many different tensors memories name."""
        return len({named for page in self._named(read) for named in page})

    def drop_purged(self, database: Database) -> None:
        """Delete what the ledger says was purged and no memory names; ``database``: the target's, complete."""
        with database.read() as session:
            purged = session.execute(
                select(EventRow.namespace, EventRow.detail).where(EventRow.kind == EventKind.PURGED.value)
            ).all()
        for namespace, detail in purged:
            digest = detail.get("tensor_digest")
            if (
                namespace in self._names
                and digest in self._there(namespace)
                and not is_named(database, namespace, digest)
            ):
                self._target.delete(namespace, digest)

    def _bring(self, namespace: str, digest: str) -> bool:
        if digest in self._there(namespace) and self._is_whole(namespace, digest):
            self.whole.add((namespace, digest))
            return False
        try:
            data = self._source.get(namespace, digest, cached=False)
        except (TensorMissing, TensorCorrupt):
            self.missing.add((namespace, digest))  # reported; the doctor of either bank says the same
            return False
        stored = self._target.put(namespace, data)
        self._there(namespace).add(digest)
        if stored != digest or not self._is_whole(namespace, digest):
            raise StorageError(
                f"tensor {digest[:19]}… of namespace {namespace!r} does not come back as it was put into the target: "
                "nothing was moved; check the target's store and run the command again"
            )
        self.whole.add((namespace, digest))
        return True

    def _is_whole(self, namespace: str, digest: str) -> bool:
        try:
            self._target.get(namespace, digest, cached=False)
        except (TensorMissing, TensorCorrupt):
            return False
        return True

    def _there(self, namespace: str) -> set[str]:
        if namespace not in self._present:
            self._present[namespace] = set(self._target.digests(namespace))
        return self._present[namespace]

    def _named(self, read: Read) -> Iterator[list[Named]]:
        key = MemoryRow.namespace, MemoryRow.id
        query = select(*key, MemoryRow.tensor_digest).order_by(*key).limit(PAGE)
        after = query
        while True:
            with read() as session:
                page = session.execute(after).tuples().all()
            yield [(namespace, digest) for namespace, _, digest in page if namespace in self._names]
            if len(page) < PAGE:
                return
            after = query.where(tuple_(*key) > tuple_(*page[-1][:2]))
