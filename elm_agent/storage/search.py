"""Nearest active memories. Indexes propose, the SQL database disposes: what was evicted is never returned."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
from sqlalchemy import func, select

from elm_agent.errors import IndexUnavailable
from elm_agent.protocols import IndexCapability
from elm_agent.records import Hit, KeyKind, MemoryState, Vector, question_digest, utcnow
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.indexes.feed import FedIndex, changes_between, once_more, revision_of
from elm_agent.storage.indexes.feed_durable import DurableFeed, fed_indexes
from elm_agent.storage.indexes.feed_exact import ExactFeed
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.paging import some
from elm_agent.storage.sql.rows import unpack
from elm_agent.storage.sql.schema import KeyRow, MemoryRow
from elm_agent.storage.vault.base import PlainVault, Vault

IndexChoice = Literal["auto", "exact", "durable"]
RebuildProgress = Callable[[str, int, int], None]

_SLACK = 8  # candidates beyond k, so that a few that are no longer usable cost no second search
_ROUGH = 256  # candidates that a projection gives at least; see ``projection`` for how often that is enough
_INLINE = 64  # revisions that a search itself looks through when the durable index is behind
_log = logging.getLogger(__name__)


class Search:
    """Chooses the index (see ``Bank``), merges what it has not seen yet, and re-checks every hit."""

    def __init__(
        self,
        database: Database,
        *,
        exact: ExactIndex,
        durable: FedIndex | None,
        choice: IndexChoice,
        exact_limit: int,
        vault: Vault | None = None,
    ) -> None:
        self._database = database
        self._vault = vault or PlainVault()
        self._exact = exact
        self._exact_feed = ExactFeed(database, exact)
        self._durable = durable
        self._durable_feed = DurableFeed(database, durable) if durable is not None else None
        self._choice = choice
        self._exact_limit = exact_limit
        self._counted: dict[str, tuple[int, int]] = {}  # namespace: (revision, what was counted then)
        self._warned: dict[str, str] = {}
        self._lock = threading.Lock()

    def nearest(
        self, namespace: str, kind: KeyKind, query: Vector, k: int, *, min_similarity: float, exclude: str | None
    ) -> list[Hit]:
        """See ``Bank.nearest``; ``exclude`` is a question."""
        wanted = k + _SLACK
        while k > 0:
            found = self._candidates(namespace, kind, query, wanted)
            near = [hit for hit in found if hit.similarity >= min_similarity]
            usable = self._usable(namespace, near, exclude)
            kept = [hit for hit in near if hit.memory_id in usable][:k]
            if len(kept) == k or len(near) < len(found) or len(found) < wanted:
                return kept
            wanted *= 4
        return []

    def feed(self, namespace: str) -> int:
        """Bring the durable index up to date, also before reads need it. Raises ``IndexUnavailable``."""
        if self._durable_feed is None or not self.keeps_durable():
            return 0
        return self._durable_feed.feed(namespace)

    def rebuild(self, namespaces: list[str], *, wipe: bool, progress: RebuildProgress | None) -> dict[str, int]:
        """See ``Bank.rebuild_index``; ``wipe`` begins with an empty index, which also forgets other namespaces."""
        for namespace in namespaces:
            self._exact_feed.scrub(namespace)
        if not self.keeps_durable():
            return dict.fromkeys(namespaces, 0)
        durable, feed = self._open_durable()
        if wipe:
            durable.wipe()
        return {name: feed.refill(name, partial(progress, name) if progress else None) for name in namespaces}

    def scrub(self, namespace: str) -> list[str]:
        """Remove what deleted keys left in the files of indexes; to be called after the deletion's commit.

        Returns the names of indexes that may still hold them: those that cannot promise it (see
        ``IndexCapability.ERASES``), and those that were once fed from this bank and are not in use here.

        Raises:
            IndexUnavailable: the index in use cannot be reached, or is open in its owner only; call it again there.
        """
        self._exact_feed.scrub(namespace)
        fed = set(fed_indexes(self._database, namespace))
        if self._durable is None or self._durable_feed is None:
            if fed and self.keeps_durable():
                raise IndexUnavailable(
                    f"the index {', '.join(sorted(fed))} may still hold deleted keys and is not open in this "
                    "process: run `elm-agent doctor --repair` in its owner"
                )
            return sorted(fed)
        self._durable_feed.scrub(namespace)
        unsure = fed - {self._durable.name}
        return sorted(unsure if IndexCapability.ERASES in self._durable.capabilities else fed | {self._durable.name})

    def keeps_durable(self) -> bool:
        """Whether the durable index is fed at all."""
        return self._choice != "exact"

    def wants_durable(self, namespace: str) -> bool:
        """Whether this namespace is to be served by the durable index."""
        if self._choice != "auto":
            return self._choice == "durable"
        return self._active(namespace) > self._exact_limit

    def warn(self, namespace: str, reason: str) -> None:
        """Say once, not at every question, that and why something slower or later happens."""
        with self._lock:
            if self._warned.get(namespace) == reason:
                return
            self._warned[namespace] = reason
        _log.warning("namespace %s: %s", namespace, reason)

    def _candidates(self, namespace: str, kind: KeyKind, query: Vector, k: int) -> list[Hit]:
        if self.wants_durable(namespace):
            try:  # once more: by then the watermark says that the index is being made anew
                return once_more(partial(self._from_durable, namespace, kind, query, k))
            except IndexUnavailable as error:
                if self._choice == "durable":
                    raise
                self.warn(namespace, f"{error}. Answering by exact scan")
        self._exact_feed.sync(namespace, kind)
        return self._exact.search(namespace, kind, query, k)

    def _from_durable(self, namespace: str, kind: KeyKind, query: Vector, k: int) -> list[Hit]:
        """The durable index's hits, with what is newer than its watermark scanned exactly."""
        durable, feed = self._open_durable()
        mark, newest = feed.position(namespace)
        if mark is None or newest - mark > _INLINE:
            feed.feed(namespace, batches=1)
            mark, newest = feed.position(namespace)
        if mark is None or newest - mark > _INLINE:
            self.warn(
                namespace,
                f"the {durable.name} index is being fed. Answering by exact scan until it is complete",
            )
            self._exact_feed.sync(namespace, kind)
            return self._exact.search(namespace, kind, query, k)
        rough = durable.width_limit is not None and len(query) > durable.width_limit
        hits = durable.search(namespace, kind, query, max(k, _ROUGH) if rough else k)
        if IndexCapability.EXACT not in durable.capabilities:
            hits = self._measured(namespace, kind, query, hits)
        found = {hit.memory_id: hit for hit in hits}
        if newest > mark:
            with self._database.read() as session:
                newer = changes_between(session, namespace, kind, mark, newest)
            for entry in newer.upsert:
                found[entry.memory_id] = Hit(entry.memory_id, _cosine(entry.vector, query))
        return sorted(found.values(), key=lambda hit: (-hit.similarity, hit.memory_id))[:k]

    def _open_durable(self) -> tuple[FedIndex, DurableFeed]:
        if self._durable is None or self._durable_feed is None:
            raise IndexUnavailable("this process has no durable index: set index='exact', or open it in its owner")
        return self._durable, self._durable_feed

    def _measured(self, namespace: str, kind: KeyKind, query: Vector, hits: list[Hit]) -> list[Hit]:
        """The hits with their true similarities; what the database no longer has is dropped."""
        of = KeyRow.namespace == namespace, KeyRow.kind == kind.value
        keys = select(KeyRow.memory_id, KeyRow.vector).where(*of)
        with self._database.read() as session:
            return [
                Hit(memory_id, _cosine(unpack(vector), query))
                for ids in some(hit.memory_id for hit in hits)
                for memory_id, vector in session.execute(keys.where(KeyRow.memory_id.in_(ids)))
            ]

    def _usable(self, namespace: str, hits: list[Hit], exclude: str | None) -> set[str]:
        if not hits:
            return set()
        columns = MemoryRow.id, MemoryRow.state, MemoryRow.question_digest, MemoryRow.valid_until
        # by primary key alone: a condition on the state tempts planners into reading every active memory
        query = select(*columns).where(MemoryRow.namespace == namespace)
        excluded = set()
        if exclude is not None:  # what was stored before encryption was switched on bears the plain digest
            digest = question_digest(exclude)
            excluded = {digest, self._vault.blind(namespace, digest)}
        now = utcnow()  # of this machine: a horizon of days needs no round trip for the database's clock
        with self._database.read() as session:
            return {
                memory_id
                for ids in some(hit.memory_id for hit in hits)
                for memory_id, state, question, until in session.execute(query.where(MemoryRow.id.in_(ids)))
                if state == MemoryState.ACTIVE and question not in excluded and (until is None or until > now)
            }

    def _active(self, namespace: str) -> int:
        """How many, but no more than one above the limit: this is asked after every change, at any size."""
        with self._database.read() as session:
            revision = revision_of(session, namespace)
            counted = self._counted.get(namespace)
            if counted is None or counted[0] != revision:
                active = select(MemoryRow.id).where(
                    MemoryRow.namespace == namespace, MemoryRow.state == MemoryState.ACTIVE
                )
                query = select(func.count()).select_from(active.limit(self._exact_limit + 1).subquery())
                counted = self._counted[namespace] = revision, session.scalar(query) or 0
        return counted[1]


def _cosine(key: Vector, query: Vector) -> float:
    """In float64, summed as the exact index does, so that the same pair has the same similarity everywhere."""
    return float((key.astype(np.float64) * query.astype(np.float64)).sum().clip(-1.0, 1.0))
