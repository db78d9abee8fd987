"""The bank: one place that orders the stores, so that a crash at any point loses nothing that was acknowledged.

The SQL database is the truth. A tensor without a row is rubbish to collect; a row always finds its tensor,
because the tensor is durable before the transaction that names it; an index is fed from the outbox after the
commit and may be lost at any time. Knows nothing of models, training or routing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import select

from elm_agent.errors import InputError, StorageError
from elm_agent.protocols import Observer, TensorStore, Trained
from elm_agent.records import (
    Effect,
    EventKind,
    Feedback,
    Hit,
    KeyKind,
    MemoryRecord,
    MemoryState,
    ModelFingerprint,
    Recipe,
    Review,
    UseOutcome,
    UseRecord,
    Vector,
)
from elm_agent.settings import check_namespace
from elm_agent.storage import adopt, lifecycle, publish, purge, superseding
from elm_agent.storage.adopt import Adopted
from elm_agent.storage.calibrations import Calibrations
from elm_agent.storage.harm import HarmWatch, read_evidence
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.indexes.feed import FedIndex
from elm_agent.storage.ledger import changes as ledger
from elm_agent.storage.ledger.changes import Change
from elm_agent.storage.ledger.proofs import horizon
from elm_agent.storage.posterior import HarmRule, Posterior, Weights, posterior
from elm_agent.storage.purge import Forgotten, PurgeReport
from elm_agent.storage.queue.jobs import JobQueue, Lease
from elm_agent.storage.reader import BankReader, NamespaceInfo, read_record
from elm_agent.storage.reviews import Reviews
from elm_agent.storage.search import IndexChoice, Search
from elm_agent.storage.sql import rows
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.paging import some
from elm_agent.storage.sql.schema import MemoryRow, NamespaceRow
from elm_agent.storage.uses import Noted, UseLog
from elm_agent.storage.vault.base import Vault
from elm_agent.storage.vault.guard import refuse_readable, refuse_readable_namespace

__all__ = ["Adopted", "Bank", "Forgotten", "Lease", "NamespaceInfo", "PurgeReport"]

_log = logging.getLogger(__name__)


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
        exact: ExactIndex | None = None,
        vault: Vault | None = None,
        shared: Collection[str] = (),
        harm: HarmRule | None = None,
    ) -> None:
        """``index``: 'exact' scans, 'durable' asks ``durable`` and fails without it, 'auto' scans up to
        ``exact_limit`` active memories of a namespace and asks ``durable`` above, or scans and says why it must.
        ``durable``: an index that not every process may open is given only in its owner. The bank closes what
        it is given. ``shared``: namespaces that every other may read, and note uses of; no other is let in.
        ``harm``: which memories are quarantined for what their uses tell; None: none.
        """
        super().__init__(database, tensors, vault)
        self.durable = durable
        self.shared = frozenset(shared)
        self.jobs = JobQueue(database, self.vault)
        self._use_log = UseLog(database, self.vault)
        self.calibrations = Calibrations(database)
        self._harm = HarmWatch(database, self.vault, harm)
        self.reviews = Reviews(database, self.vault, changed=self._feed_or_warn, used=self._watch)
        self.exact = exact or ExactIndex()
        self._search = Search(
            database, exact=self.exact, durable=durable, choice=index, exact_limit=exact_limit, vault=self.vault
        )

    # --- namespaces -------------------------------------------------------------------------------------

    def bind(self, namespace: str, model: ModelFingerprint, *, actor: str = "agent") -> None:
        """Make the namespace for ``model``, or check that it is.

        Raises:
            ModelMismatch: it was made for other weights, another tokenizer or template.
            SettingsError: the name is not usable.
            BankMoved: the namespace went to another bank.
            VaultLocked: the bank is encrypted, and was opened without its key.
        """
        check_namespace(namespace)
        with self.database.read() as session:
            row = session.get(NamespaceRow, namespace)
            refuse_readable(session, self.vault, namespace)
        if row is None:
            with self.database.write() as session:
                ledger.check_not_moved(session)
                refuse_readable_namespace(session, self.vault, namespace)
                values = publish.namespace_values(namespace, model, actor, self.database.now(session))
                self.database.add_once(session, NamespaceRow, values, ["name"])
                row = ledger.lock_namespace(session, namespace)
        ledger.check_here(row)
        publish.check_model(row, model)
        self.vault.ensure(namespace)

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
        admission: Mapping[str, Any] | None = None,
        review: Review | None = None,
        observe: Observer | None = None,
    ) -> MemoryRecord:
        """Make what a worker trained a memory, and its job done; all of it or nothing.

        ``admission``: on what grounds it has this state, for its ``gated`` event: names and numbers alone.
        ``review``: WAITING for a candidate that a person is to look at; see ``storage.reviews``.
        ``observe`` is told the steps of ``LEARN_STEPS`` from "tensor.temporary" on.

        Raises:
            LeaseLost: another worker holds the job; what was trained is discarded.
            ModelMismatch: the namespace is made for another model.
            InputError: the prompt or a key cannot be stored.
            VaultLocked: the namespace was encrypted after this bank had been opened without a key.
            StorageError: a store refused; the job can be tried again.
        """
        tell: Observer = observe or _silent
        namespace = lease.job.namespace
        made = publish.Publication(lease, trained, task, model, recipe, state, reason, admission or {}, review)
        memory = publish.publish(self.database, self.tensors, self.vault, made, tell)
        tell("publish.committed", {"memory_id": memory.id})
        # 3. the derived index learns of it; if it cannot, the outbox still has it
        self._feed_or_warn(namespace)
        tell("index.fed", {"memory_id": memory.id})
        return rows.memory_record(memory, self.vault, 0, 0, 0)

    def transition(
        self,
        namespace: str,
        memory_id: str,
        to: MemoryState,
        *,
        actor: str,
        reason: str | None,
        expected: int | None = None,
    ) -> MemoryRecord:
        """Activate, quarantine, evict (RETIRED) or restore (ACTIVE) a memory. The state it has is no change.

        ``expected``: the ``revision`` of the record that the caller decided by.

        Raises ``NotFound``; ``InputError`` when it is pinned and to be evicted, or was once more than a candidate;
        ``ChangedMeanwhile`` when it is of another revision by now.
        """
        with self._changing(namespace, actor) as change:
            memory = ledger.find_memory(change.session, namespace, memory_id)
            ledger.check_unchanged(memory, expected)
            lifecycle.transition(change, memory, to, reason)
            record = read_record(change.session, namespace, memory_id, self.vault)
        self._feed_or_warn(namespace)
        return record

    def evict(
        self,
        namespace: str,
        reasons: Mapping[str, str | None],
        *,
        actor: str,
        observe: Observer | None = None,
    ) -> list[str]:
        """Retire many memories, in one transaction; the ids that were. Restorable until they are purged.

        Passed over: unknown ids, what is pinned, and what is retired already. ``reasons``: by memory id.
        """
        tell: Observer = observe or _silent
        with self._changing(namespace, actor) as change:
            evicted: list[MemoryRow] = []
            for ids in some(reasons):
                query = select(MemoryRow).where(MemoryRow.namespace == namespace, MemoryRow.id.in_(ids))
                found = change.session.scalars(query)
                evicted += [row for row in found if not row.pinned and row.state != MemoryState.RETIRED]
            for row in sorted(evicted, key=lambda row: row.id):
                lifecycle.transition(change, row, MemoryState.RETIRED, reasons[row.id])
            change.session.flush()
            tell("evict.before_commit", {"namespace": namespace, "memories": len(evicted)})
        tell("evict.committed", {"namespace": namespace, "memories": len(evicted)})
        self._feed_or_warn(namespace)
        return sorted(row.id for row in evicted)

    def pin(
        self, namespace: str, memory_id: str, pinned: bool, *, actor: str, expected: int | None = None
    ) -> MemoryRecord:
        """A pinned memory cannot be evicted. Raises ``NotFound``, ``ChangedMeanwhile``; see ``transition``."""
        with self._changing(namespace, actor) as change:
            memory = ledger.find_memory(change.session, namespace, memory_id)
            ledger.check_unchanged(memory, expected)
            if memory.pinned != pinned:
                memory.pinned = pinned
                change.note(EventKind.PINNED if pinned else EventKind.UNPINNED, memory)
            return read_record(change.session, namespace, memory_id, self.vault)

    def review(self, namespace: str, memory_id: str, *, actor: str, verdict: str, note: str | None) -> MemoryRecord:
        """Note that a person looked at a memory. ``verdict``: one word, kept for ever. Raises ``NotFound``."""
        return self._noted(namespace, memory_id, EventKind.REVIEWED, actor, {"verdict": verdict}, note, reindex=False)

    def set_validity(
        self, namespace: str, memory_id: str, valid_until: datetime | None, *, actor: str
    ) -> MemoryRecord:
        """From ``valid_until`` on the memory is not retrieved, and the next pass of upkeep retires it; None: never.

        Raises ``NotFound``, or ``InputError`` for a time without a zone.
        """
        if valid_until is not None and valid_until.tzinfo is None:
            raise InputError(f"valid_until is a time with its zone; got {valid_until.isoformat()} without one")
        with self._changing(namespace, actor) as change:
            memory = ledger.find_memory(change.session, namespace, memory_id)
            if memory.valid_until != valid_until:
                memory.valid_until = valid_until
                change.note(EventKind.VALIDITY, memory, {"valid_until": horizon(valid_until)})
            return read_record(change.session, namespace, memory_id, self.vault)

    def repaired(self, namespace: str, memory_id: str, *, actor: str, detail: dict[str, Any]) -> MemoryRecord:
        """Note a repair, and tell every index anew whether this memory is to be found. Raises ``NotFound``."""
        record = self._noted(namespace, memory_id, EventKind.REPAIRED, actor, detail, None, reindex=True)
        self._feed_or_warn(namespace)
        return record

    def note_event(
        self, namespace: str, kind: EventKind, *, actor: str, detail: dict[str, Any], note: str | None = None
    ) -> None:
        """An event of the namespace as a whole. ``detail``: see ``ledger.Change.note``. Raises ``NotFound``."""
        with self._changing(namespace, actor) as change:
            change.note(kind, None, detail, text=note)

    def adopt(
        self, namespace: str, items: Sequence[Adopted], *, actor: str, observe: Observer | None = None
    ) -> list[tuple[str, bool]]:
        """Take in whole memories from elsewhere, in one transaction; see ``storage.adopt``.

        Returns (memory id, whether it is new), in order: a prompt that the namespace has is not stored twice.

        Raises:
            NotFound: the namespace is not in this bank; ``bind`` makes it.
            ModelMismatch: an item is for another model. InputError: one that cannot be stored. Then nothing is.
        """
        adopted = adopt.adopt(
            self.database, self.tensors, self.vault, namespace, items, actor=actor, tell=observe or _silent
        )
        self._feed_or_warn(namespace)
        return adopted

    def supersede(
        self,
        namespace: str,
        successor: str | Adopted,
        going: Mapping[str, int],
        *,
        actor: str,
        detail: Mapping[str, Any],
        observe: Observer | None = None,
    ) -> str:
        """One memory takes the place of others: all of it in one transaction, or nothing. Returns its id.

        ``successor``: an active memory by id, or a new one. ``going``: revisions, as the caller saw them, by the ids
        that retire. ``detail``: of its ``merged`` event, see ``Change.note``; ``storage.superseding`` reads it.
        ``observe`` is told "supersede.before_commit" and "supersede.committed".

        Raises:
            ChangedMeanwhile: one of them was changed since, is pinned, or does not serve.
            NotFound: one is gone. InputError, ModelMismatch: a new one that cannot be stored.
        """
        tell: Observer = observe or _silent
        told = {"namespace": namespace, "memories": len(going)}

        def then(change: Change, found: Sequence[tuple[str, bool]]) -> None:
            superseding.supersede(change, found[0][0], going, detail=detail)
            change.session.flush()
            tell("supersede.before_commit", told)

        if isinstance(successor, str):
            with self._changing(namespace, actor) as change:
                then(change, [(successor, False)])
            memory_id = successor
        else:
            ((memory_id, _),) = adopt.adopt(
                self.database, self.tensors, self.vault, namespace, [successor], actor=actor, tell=tell, then=then
            )
        tell("supersede.committed", told | {"memory_id": memory_id})
        self._feed_or_warn(namespace)
        return memory_id

    # --- removing for good ------------------------------------------------------------------------------

    def purge(
        self,
        namespace: str,
        memory_ids: Sequence[str],
        *,
        actor: str,
        reason: str | None,
        observe: Observer | None = None,
    ) -> PurgeReport:
        """Remove memories for good, with all that came of them; see ``storage.purge``. Only tombstones are left.

        Raises:
            NotFound: an unknown or already purged id. InputError: a pinned one. Then nothing is purged.
            StorageError: a store refused after the commit; the rest is done by the next purge or ``doctor``.
        """
        return purge.purge(self, namespace, memory_ids, actor=actor, reason=reason, tell=observe or _silent)

    def forget_subject(
        self,
        subject: str,
        *,
        namespace: str | None = None,
        actor: str,
        dry_run: bool = False,
        observe: Observer | None = None,
    ) -> list[Forgotten]:
        """Purge every memory, episode, job and use that came from ``subject``, in one namespace or in all.

        What is pinned goes too: a person's wish to be forgotten counts more. ``dry_run``: only say what would go.
        """
        return purge.forget(self, subject, namespace=namespace, actor=actor, dry_run=dry_run, tell=observe or _silent)

    def finish_purges(self, namespace: str) -> int:
        """Remove what an interrupted purge left in files and indexes; how many memories it was. Idempotent."""
        return purge.finish(self, namespace, _silent)[0]

    # --- uses -------------------------------------------------------------------------------------------

    def record_use(self, use: UseRecord, *, observe: Observer | None = None) -> None:
        """Note one retrieval; the same id twice is one use. ``observe`` is told the steps of ``USE_STEPS``.

        A use whose answer a person has chosen is an event too.

        Raises ``NotFound`` for a memory that is not there or a namespace that is not bound, ``InputError`` for a
        memory of a namespace that is not shared.
        """
        self._check_shared(use.namespace, use.memory_namespace or use.namespace)
        self._use_log.record(use, observe or _silent)
        self._watch(use.namespace, use.memory_namespace or use.namespace, use.memory_id)

    def settle_use(
        self, namespace: str, use_id: str, outcome: UseOutcome, *, observe: Observer | None = None
    ) -> None:
        """Note what the use did, once it is known; the last word counts. Raises ``NotFound``."""
        self._watch(namespace, *self._use_log.settle(namespace, use_id, outcome, observe or _silent))

    def note_feedback(
        self,
        namespace: str,
        use_id: str,
        feedback: Feedback,
        *,
        answer: str | None = None,
        effect: Effect | None = None,
        observe: Observer | None = None,
    ) -> Noted:
        """Note what a user said of the answer; the last word counts. ``memory.feedback`` says what its effect is.

        Raises ``NotFound``.
        """
        noted = self._use_log.note_feedback(
            namespace, use_id, feedback, answer=answer, effect=effect, tell=observe or _silent
        )
        self._watch(namespace, noted.use.memory_namespace or namespace, noted.use.memory_id)
        return noted

    def use(self, namespace: str, use_id: str) -> UseRecord:
        """Raises ``NotFound``, also for a use of another namespace."""
        return self._use_log.get(namespace, use_id)

    def posteriors(
        self, namespace: str, memories: Collection[tuple[str, str]], weights: Weights | None = None
    ) -> dict[tuple[str, str], Posterior]:
        """What memories, each (its namespace, its id), are worth in ``namespace``; see ``storage.harm`` on walls.

        One that is not there has no uses. Raises ``InputError`` for a namespace that is not shared.
        """
        homes = {home for home, _ in memories}
        self._check_shared(namespace, *homes)
        with self.database.read() as session:
            return {
                (home, memory_id): posterior(evidence, weights or Weights())
                for home in sorted(homes)
                for memory_id, evidence in read_evidence(
                    session, namespace, home, [memory_id for name, memory_id in memories if name == home]
                ).items()
            }

    def uses(
        self,
        namespace: str,
        memory_id: str | None = None,
        limit: int | None = None,
        *,
        home: str | None = None,
    ) -> list[UseRecord]:
        """Newest first. ``home``: only of memories that live there; with ``memory_id`` an index finds them."""
        return self._use_log.list(namespace, memory_id, limit, home)

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
        shared: Sequence[str] = (),
    ) -> list[Hit]:
        """At most k active memories, most similar first, ties by id. An eviction counts from its commit on.

        ``shared``: which of the bank's shared namespaces to look in too; each hit names its own.

        ``query``: float32, unit length, of the key's width. ``exclude_question``: a memory made from this very
        question is passed over.

        Raises:
            NotFound: the namespace is not in this bank. InputError: one to look in is not shared.
            IndexUnavailable: only with ``index='durable'``; 'auto' scans exactly and logs the reason.
        """
        self._check_shared(namespace, *shared)
        found: list[Hit] = []
        for name in dict.fromkeys((namespace, *shared)):
            hits = self._search.nearest(name, kind, query, k, min_similarity=min_similarity, exclude=exclude_question)
            found += [replace(hit, namespace=name) for hit in hits]
        return sorted(found, key=lambda hit: (-hit.similarity, hit.memory_id))[:k]

    def feed(self) -> int:
        """Bring the durable index up to date; how many keys came or went. Only where it is open.

        Raises ``IndexUnavailable``.
        """
        return sum(self._search.feed(info.name) for info in self.namespaces())

    def uses_durable(self) -> bool:
        """Whether a durable index is kept in step with the database: always, unless ``index`` is 'exact'."""
        return self._search.keeps_durable()

    def scrub_indexes(self, namespace: str) -> list[str]:
        """Leave no byte of a purged vector in the files of an index; names those that cannot promise it.

        Raises ``IndexUnavailable``; then it is to be called again.
        """
        return self._search.scrub(namespace)

    def rebuild_index(
        self, namespace: str | None = None, progress: Callable[[str, int, int], None] | None = None
    ) -> dict[str, int]:
        """Make the indexes anew from the keys in the database, of one namespace or of all; keys fed by namespace.

        ``progress(namespace, keys done, keys in all)``. Raises ``NotFound`` or ``IndexUnavailable``.
        """
        if namespace is not None:
            return self._search.rebuild([namespace], wipe=False, progress=progress)
        return self._search.rebuild([info.name for info in self.namespaces()], wipe=True, progress=progress)

    def close(self) -> None:
        """Give the indexes and the database back. The bank cannot be used afterwards."""
        if self.durable is not None:
            self.durable.close()
        self.exact.close()
        self.database.close()

    def _check_shared(self, namespace: str, *others: str) -> None:
        for name in others:
            if name != namespace and name not in self.shared:
                raise InputError(
                    f"namespace {name[:100]!r} is not shared with {namespace[:100]!r}: name it in the setting "
                    "shared_namespaces, or in `shared` where a Bank is made"
                )

    def _changing(self, namespace: str, actor: str) -> AbstractContextManager[Change]:
        return ledger.changing(self.database, namespace, actor=actor, vault=self.vault)

    def _noted(
        self,
        namespace: str,
        memory_id: str,
        kind: EventKind,
        actor: str,
        detail: dict[str, Any],
        note: str | None,
        *,
        reindex: bool,
    ) -> MemoryRecord:
        with self._changing(namespace, actor) as change:
            memory = ledger.find_memory(change.session, namespace, memory_id)
            change.note(kind, memory, detail, text=note, reindex=reindex)
            return read_record(change.session, namespace, memory_id, self.vault)

    def _watch(self, namespace: str, home: str, memory_id: str) -> None:
        """After a use of ``namespace`` was committed: what goes wrong here must not make the caller note it again."""
        if home != namespace:
            return
        try:
            quarantined = self._harm.look(home, memory_id)
        except StorageError as error:
            _log.warning("memory %s could not be judged, its next use will: %s", memory_id, error)
            return
        if quarantined:
            self._feed_or_warn(home)

    def _feed_or_warn(self, namespace: str) -> None:
        try:
            self._search.feed(namespace)
        except StorageError as error:  # whatever it is: the caller must not do again what is done
            self._search.warn(namespace, f"{error}. The change is committed; the index gets it when it is fed")


def _silent(step: str, detail: dict[str, Any]) -> None:
    """An observer that nobody listens to."""
