"""The bank: one place that orders the stores, so that a crash at any point loses nothing that was acknowledged.

The SQL database is the truth. A tensor without a row is rubbish to collect; a row always finds its tensor,
because the tensor is durable before the transaction that names it; an index is fed from the outbox after the
commit and may be lost at any time. Knows nothing of models, training or routing.
"""

from __future__ import annotations

from typing import Any

from elm_agent.errors import IndexUnavailable, InputError
from elm_agent.protocols import KeyIndex, Observer, TensorStore, Trained
from elm_agent.records import (
    EventKind,
    Hit,
    KeyKind,
    MemoryRecord,
    MemoryState,
    ModelFingerprint,
    Recipe,
    UseOutcome,
    UseRecord,
    Vector,
)
from elm_agent.settings import check_namespace
from elm_agent.storage import ledger, publish, rows
from elm_agent.storage.database import Database
from elm_agent.storage.feed import FedIndex
from elm_agent.storage.index_exact import ExactIndex
from elm_agent.storage.jobs import JobQueue, Lease, fenced
from elm_agent.storage.jobstate import finish
from elm_agent.storage.reader import BankReader, NamespaceInfo, read_record
from elm_agent.storage.schema import NamespaceRow
from elm_agent.storage.search import IndexChoice, Search
from elm_agent.storage.uses import UseLog

__all__ = ["Bank", "Lease", "NamespaceInfo"]

_BECOMES = {
    (MemoryState.CANDIDATE, MemoryState.ACTIVE): EventKind.ACTIVATED,
    (MemoryState.RETIRED, MemoryState.ACTIVE): EventKind.RESTORED,
    (MemoryState.QUARANTINED, MemoryState.ACTIVE): EventKind.RESTORED,
    (MemoryState.CANDIDATE, MemoryState.RETIRED): EventKind.EVICTED,
    (MemoryState.ACTIVE, MemoryState.RETIRED): EventKind.EVICTED,
    (MemoryState.QUARANTINED, MemoryState.RETIRED): EventKind.EVICTED,
    (MemoryState.CANDIDATE, MemoryState.QUARANTINED): EventKind.QUARANTINED,
    (MemoryState.ACTIVE, MemoryState.QUARANTINED): EventKind.QUARANTINED,
    (MemoryState.RETIRED, MemoryState.QUARANTINED): EventKind.QUARANTINED,
}


class Bank(BankReader):
    """All memories of one database. Any thread may call any method."""

    def __init__(
        self,
        database: Database,
        tensors: TensorStore,
        *,
        exact_limit: int = 20_000,
        index: IndexChoice = "auto",
        durable: FedIndex | None = None,
        exact: KeyIndex | None = None,
    ) -> None:
        """``index``: 'exact' scans, 'durable' asks ``durable`` and fails without it, 'auto' scans up to
        ``exact_limit`` active memories of a namespace and asks ``durable`` above, or scans and says why it must.
        ``durable``: an index that not every process may open is given only in its owner. The bank closes what
        it is given.
        """
        super().__init__(database, tensors)
        self.durable = durable
        self.jobs = JobQueue(database)
        self._use_log = UseLog(database)
        self._exact = exact or ExactIndex()
        self._search = Search(database, exact=self._exact, durable=durable, choice=index, exact_limit=exact_limit)

    # --- namespaces -------------------------------------------------------------------------------------

    def bind(self, namespace: str, model: ModelFingerprint, *, actor: str = "agent") -> None:
        """Make the namespace for ``model``, or check that it is.

        Raises:
            ModelMismatch: it was made for other weights, another tokenizer or template.
            SettingsError: the name is not usable.
        """
        check_namespace(namespace)
        with self.database.read() as session:
            row = session.get(NamespaceRow, namespace)
        if row is None:
            with self.database.write() as session:
                values = publish.namespace_values(namespace, model, actor, self.database.now(session))
                self.database.add_once(session, NamespaceRow, values, ["name"])
                row = ledger.lock_namespace(session, namespace)
        publish.check_model(row, model)

    # --- changes ----------------------------------------------------------------------------------------

    def publish(
        self,
        lease: Lease,
        trained: Trained,
        *,
        task: str,
        model: ModelFingerprint,
        recipe: Recipe,
        state: MemoryState,
        reason: str | None,
        observe: Observer | None = None,
    ) -> MemoryRecord:
        """Make what a worker trained a memory, and its job done; all of it or nothing.

        ``observe`` is told the steps of ``LEARN_STEPS`` from "tensor.temporary" on.

        Raises:
            LeaseLost: another worker holds the job; what was trained is discarded.
            ModelMismatch: the namespace is made for another model.
            InputError: the prompt or a key cannot be stored.
            StorageError: a store refused; the job can be tried again.
        """
        from elm_agent.softprompt import to_bytes  # torch enters late: reading commands need none

        tell: Observer = observe or _silent
        namespace = lease.job.namespace
        publish.check_trained(trained, state, model)
        # 1. the tensor is durable before anything names it
        digest = self.tensors.put(to_bytes(trained.prompt.prompt_VE), observe)
        # 2. one transaction makes it a memory
        with self.database.write() as session:
            now = self.database.now(session)
            job = fenced(session, lease)
            owner = ledger.lock_namespace(session, namespace)
            publish.check_model(owner, model)
            episode = publish.new_episode(lease, trained, task=task, now=now)
            session.add(rows.episode_row(episode))
            session.flush()
            memory = publish.new_memory(
                lease, trained, episode, tensor_digest=digest, model=model, recipe=recipe, state=state, reason=reason
            )
            session.add(memory)
            session.flush()
            session.add_all(publish.new_keys(session, memory, trained.keys))
            detail = {"state": state.value, "reason": reason, "job_id": lease.job.id, "tensor_digest": digest}
            ledger.append(
                session, owner, EventKind.CREATED, memory, actor=lease.owner, detail=detail, now=now, reindex=True
            )
            finish(job, memory.id, now)
            session.flush()
            tell("publish.before_commit", {"memory_id": memory.id})
        tell("publish.committed", {"memory_id": memory.id})
        # 3. the derived index learns of it; if it cannot, the outbox still has it
        self._feed_or_warn(namespace)
        tell("index.fed", {"memory_id": memory.id})
        return rows.memory_record(memory, 0, 0, 0)

    def transition(
        self, namespace: str, memory_id: str, to: MemoryState, *, actor: str, reason: str | None
    ) -> MemoryRecord:
        """Activate, quarantine, evict (RETIRED) or restore (ACTIVE) a memory. The state it has is no change.

        Raises ``NotFound``; ``InputError`` when it is pinned and to be evicted, or was once more than a candidate.
        """
        with self.database.write() as session:
            owner = ledger.lock_namespace(session, namespace)
            memory = ledger.find_memory(session, namespace, memory_id)
            was = MemoryState(memory.state)
            if was != to:
                kind = _becomes(memory_id, was, to)
                if to == MemoryState.RETIRED and memory.pinned:
                    raise InputError(f"memory {memory_id} is pinned: unpin it before it is evicted")
                now = self.database.now(session)  # first: it would flush, and one change is one UPDATE
                memory.state = to.value
                memory.reason = reason
                detail = {"from": was.value, "to": to.value, "reason": reason}
                ledger.append(session, owner, kind, memory, actor=actor, detail=detail, now=now, reindex=True)
            record = read_record(session, namespace, memory_id)
        self._feed_or_warn(namespace)
        return record

    def pin(self, namespace: str, memory_id: str, pinned: bool, *, actor: str) -> MemoryRecord:
        """A pinned memory cannot be evicted. Raises ``NotFound``."""
        with self.database.write() as session:
            owner = ledger.lock_namespace(session, namespace)
            memory = ledger.find_memory(session, namespace, memory_id)
            if memory.pinned != pinned:
                memory.pinned = pinned
                kind = EventKind.PINNED if pinned else EventKind.UNPINNED
                now = self.database.now(session)
                ledger.append(session, owner, kind, memory, actor=actor, detail={}, now=now, reindex=False)
            return read_record(session, namespace, memory_id)

    def repaired(self, namespace: str, memory_id: str, *, actor: str, detail: dict[str, Any]) -> MemoryRecord:
        """Note a repair, and tell every index anew whether this memory is to be found. Raises ``NotFound``."""
        with self.database.write() as session:
            owner = ledger.lock_namespace(session, namespace)
            memory = ledger.find_memory(session, namespace, memory_id)
            now = self.database.now(session)
            ledger.append(
                session, owner, EventKind.REPAIRED, memory, actor=actor, detail=detail, now=now, reindex=True
            )
            record = read_record(session, namespace, memory_id)
        self._feed_or_warn(namespace)
        return record

    # --- uses -------------------------------------------------------------------------------------------

    def record_use(self, use: UseRecord) -> None:
        """Note one retrieval; the same id twice is one use. Raises ``NotFound`` for a memory that is not there."""
        self._use_log.record(use)

    def settle_use(self, namespace: str, use_id: str, outcome: UseOutcome) -> None:
        """Note what the use did, once it is known; the last word counts. Raises ``NotFound``."""
        self._use_log.settle(namespace, use_id, outcome)

    def uses(self, namespace: str, memory_id: str | None = None, limit: int | None = None) -> list[UseRecord]:
        """Newest first."""
        return self._use_log.list(namespace, memory_id, limit)

    # --- finding, and the indexes -----------------------------------------------------------------------

    def nearest(
        self,
        namespace: str,
        kind: KeyKind,
        query: Vector,
        k: int,
        *,
        min_similarity: float = -1.0,
        exclude_question: str | None = None,
    ) -> list[Hit]:
        """At most k active memories, most similar first, ties by id. An eviction counts from its commit on.

        ``query``: float32, unit length, of the key's width. ``exclude_question``: a memory made from this very
        question is passed over.

        Raises:
            NotFound: the namespace is not in this bank.
            IndexUnavailable: only with ``index='durable'``; 'auto' scans exactly and logs the reason.
        """
        return self._search.nearest(
            namespace, kind, query, k, min_similarity=min_similarity, exclude=exclude_question
        )

    def feed(self) -> int:
        """Bring the durable index up to date; how many keys came or went. Only where it is open.

        Raises ``IndexUnavailable``.
        """
        return sum(self._search.feed(info.name) for info in self.namespaces())

    def uses_durable(self) -> bool:
        """Whether a durable index is kept in step with the database: always, unless ``index`` is 'exact'."""
        return self._search.keeps_durable()

    def close(self) -> None:
        """Give the indexes and the database back. The bank cannot be used afterwards."""
        if self.durable is not None:
            self.durable.close()
        self._exact.close()
        self.database.close()

    def _feed_or_warn(self, namespace: str) -> None:
        try:
            self._search.feed(namespace)
        except IndexUnavailable as error:
            self._search.warn(namespace, f"{error}. The change is committed; the index gets it when it is fed")


def _becomes(memory_id: str, was: MemoryState, to: MemoryState) -> EventKind:
    kind = _BECOMES.get((was, to))
    if kind is None:
        raise InputError(f"memory {memory_id} is {was}: it cannot become {to} again")
    return kind


def _silent(step: str, detail: dict[str, Any]) -> None:
    """An observer that nobody listens to."""
