"""One probe for each public method that a namespace's user may call: asked in one namespace for what is another's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kill_child import MODEL, RECIPE

from elm_agent.bench.filling import use_of
from elm_agent.errors import NotFound
from elm_agent.protocols import IndexEntry, KeyIndex, TensorStore, Trained
from elm_agent.records import (
    EventKind,
    Feedback,
    JobRecord,
    KeyKind,
    MemoryRecord,
    MemoryState,
    Review,
    UseOutcome,
    UseRecord,
    utcnow,
)
from elm_agent.storage.adopt import Adopted
from elm_agent.storage.bank import Bank, Lease
from elm_agent.storage.ledger import chain
from elm_agent.storage.packs.transfer import export_pack
from elm_agent.storage.queue.jobs import JobQueue
from elm_agent.storage.reviews import Reviews
from elm_agent.storage.vault.encrypted import EncryptedVault
from elm_agent.storage.vault.rotation import rotate_data
from elm_agent.testing.doubles import key_of

MINE, OTHER, SECRET, COMMON = "mine", "other", "marmalade", "What does everybody ask?"
KIND, ACTOR = KeyKind.INPUT, "prober"
QUERY = key_of(f"What is {SECRET} 1?", KIND)


@dataclass(frozen=True)
class Asked:
    """In ``name``: for the memory, use, job and lease of ``OTHER``; ``common``: whose prompt both have."""

    bank: Bank
    index: KeyIndex
    name: str
    memory: MemoryRecord
    common: MemoryRecord
    use_id: str
    job: JobRecord
    lease: Lease
    trained: Trained
    folder: Path

    @property
    def id(self) -> str:
        return self.memory.id

    @property
    def forged(self) -> Lease:
        """The other's lease, as if the job were of ``name``."""
        return replace(self.lease, job=replace(self.lease.job, namespace=self.name))


def use(namespace: str, memory_id: str, word: str, home: str = "") -> UseRecord:
    return use_of(
        namespace,
        memory_id,
        memory_namespace=home,
        question=f"{word}?",
        key_kind=KIND,
        answer=word,
        memory_answer=word,
        zero_shot_answer=word,
    )


def _publish(a: Asked) -> Any:
    how: dict[str, Any] = {"task": "math", "model": MODEL, "recipe": RECIPE, "reason": None}
    return a.bank.publish(a.forged, a.trained, state=MemoryState.ACTIVE, **how)


def _adopt(a: Asked) -> Any:
    """The other's very prompt: it is new here."""
    made, prompt = a.trained, a.bank.prompt(OTHER, a.common.id)
    item = Adopted(
        question=COMMON, task="math", prompt=prompt, keys=made.keys, model=MODEL, recipe=RECIPE, origin="probe"
    )
    return a.bank.adopt(a.name, [item], actor=ACTOR)


def _put(a: Asked) -> None:
    """The other's very bytes: what is put and deleted here is a copy."""
    theirs = a.bank.tensors.get(OTHER, a.memory.tensor_digest)
    a.bank.tensors.delete(a.name, a.bank.tensors.put(a.name, theirs))


def _enqueue(a: Asked) -> JobRecord:
    """What the other has learnt: it is a job of its own here."""
    return a.bank.jobs.enqueue(a.name, COMMON, task="math", model_id=MODEL.id, recipe=RECIPE)[0]


def _rotate(a: Asked) -> Any:
    return rotate_data(a.bank, a.name) if isinstance(a.bank.vault, EncryptedVault) else None


def _chain(a: Asked) -> Any:
    return chain.verify(a.bank.database, a.name, vault=a.bank.vault)


def _nearest(a: Asked, **more: Any) -> Any:
    with suppress(NotFound):  # also where there is nothing of one's own, to be searched first
        return a.bank.nearest(a.name, KIND, QUERY, 10, **more)
    return None


PROBES: dict[str, Callable[[Asked], Any]] = {
    "Bank.bind": lambda a: a.bank.bind(a.name, MODEL),
    "Bank.namespace": lambda a: a.bank.namespace(a.name),
    "Bank.memory": lambda a: a.bank.memory(a.name, a.id),
    "Bank.memories": lambda a: a.bank.memories(a.name),
    "Bank.prompt": lambda a: a.bank.prompt(a.name, a.id),
    "Bank.episode": lambda a: a.bank.episode(a.name, a.id),
    "Bank.keys": lambda a: a.bank.keys(a.name, a.id),
    "Bank.events": lambda a: a.bank.events(a.name),
    "Bank.events of one": lambda a: a.bank.events(a.name, a.id),
    "Bank.exports": lambda a: a.bank.exports(a.name, a.id),
    "Bank.tombstones": lambda a: a.bank.tombstones(a.name),
    "Bank.drop_caches": lambda a: a.bank.drop_caches(a.name, [a.id]),
    "Bank.uses": lambda a: a.bank.uses(a.name),
    "Bank.uses of one": lambda a: a.bank.uses(a.name, a.id),
    "Bank.publish": _publish,
    "Bank.adopt": _adopt,
    "Bank.transition": lambda a: a.bank.transition(a.name, a.id, MemoryState.RETIRED, actor=ACTOR, reason=None),
    "Bank.evict": lambda a: a.bank.evict(a.name, {a.id: "mine now"}, actor=ACTOR),
    "Bank.pin": lambda a: a.bank.pin(a.name, a.id, True, actor=ACTOR),
    "Bank.review": lambda a: a.bank.review(a.name, a.id, verdict="bad", note=None, actor=ACTOR),
    "Bank.set_validity": lambda a: a.bank.set_validity(a.name, a.id, utcnow(), actor=ACTOR),
    "Bank.repaired": lambda a: a.bank.repaired(a.name, a.id, detail={}, actor=ACTOR),
    "Bank.note_event": lambda a: a.bank.note_event(a.name, EventKind.REPAIRED, detail={}, actor=ACTOR),
    "Bank.supersede": lambda a: a.bank.supersede(a.name, a.id, {a.common.id: 1}, detail={}, actor=ACTOR),
    "Bank.purge": lambda a: a.bank.purge(a.name, [a.id], reason=None, actor=ACTOR),
    "Bank.forget_subject": lambda a: a.bank.forget_subject(SECRET, namespace=a.name, actor=ACTOR),
    "Bank.finish_purges": lambda a: a.bank.finish_purges(a.name),
    "Bank.record_use": lambda a: a.bank.record_use(use(a.name, a.id, "probe")),
    "Bank.record_use abroad": lambda a: a.bank.record_use(use(a.name, a.id, "probe", home=OTHER)),
    "Bank.settle_use": lambda a: a.bank.settle_use(a.name, a.use_id, UseOutcome.BROKEN),
    "Bank.use": lambda a: a.bank.use(a.name, a.use_id),
    "Bank.note_feedback": lambda a: a.bank.note_feedback(a.name, a.use_id, Feedback.WRONG, answer="mine"),
    "Bank.posteriors": lambda a: list(a.bank.posteriors(a.name, [(a.name, a.id)]).values()),
    "Bank.posteriors abroad": lambda a: a.bank.posteriors(a.name, [(OTHER, a.id)]),
    "Reviews.count": lambda a: a.bank.reviews.count(a.name),
    "Reviews.memories": lambda a: a.bank.reviews.memories(a.name),
    "Reviews.answers": lambda a: a.bank.reviews.answers(a.name),
    "Reviews.decide_memory": lambda a: a.bank.reviews.decide_memory(a.name, a.id, Review.REJECTED, actor=ACTOR),
    "Reviews.reopen_memory": lambda a: a.bank.reviews.reopen_memory(a.name, a.id, actor=ACTOR),
    "Reviews.decide_answer": lambda a: a.bank.reviews.decide_answer(a.name, a.use_id, Review.APPROVED, actor=ACTOR),
    "Reviews.reopen_answer": lambda a: a.bank.reviews.reopen_answer(a.name, a.use_id, actor=ACTOR),
    "Bank.nearest": _nearest,
    "Bank.nearest shared": lambda a: _nearest(a, shared=[OTHER]),
    "Bank.scrub_indexes": lambda a: a.bank.scrub_indexes(a.name),
    "Bank.rebuild_index": lambda a: a.bank.rebuild_index(a.name),
    "JobQueue.enqueue": _enqueue,
    "JobQueue.get": lambda a: a.bank.jobs.get(a.name, a.job.id),
    "JobQueue.cancel": lambda a: a.bank.jobs.cancel(a.name, a.lease.job.id),
    "JobQueue.retry": lambda a: a.bank.jobs.retry(a.name, a.job.id),
    "JobQueue.list": lambda a: a.bank.jobs.list(a.name),
    "JobQueue.unfinished": lambda a: a.bank.jobs.unfinished(a.name),
    "JobQueue.heartbeat": lambda a: a.bank.jobs.heartbeat(a.forged, lease_seconds=1),
    "JobQueue.release": lambda a: a.bank.jobs.release(a.forged, "mine now"),
    "JobQueue.fail": lambda a: a.bank.jobs.fail(a.forged, "mine now", backoff_seconds=0),
    "JobQueue.cancelled": lambda a: a.bank.jobs.cancelled(a.forged, "mine now"),
    "TensorStore.put": _put,
    "TensorStore.get": lambda a: a.bank.tensors.get(a.name, a.memory.tensor_digest),
    "TensorStore.age": lambda a: a.bank.tensors.age(a.name, a.memory.tensor_digest),
    "TensorStore.delete": lambda a: a.bank.tensors.delete(a.name, a.memory.tensor_digest),
    "TensorStore.digests": lambda a: list(a.bank.tensors.digests(a.name)),
    "KeyIndex.apply": lambda a: a.index.apply(a.name, KIND, [IndexEntry("mem_probe", QUERY)], [a.id]),
    "KeyIndex.search": lambda a: a.index.search(a.name, KIND, QUERY, 10),
    "KeyIndex.ids": lambda a: a.index.ids(a.name, KIND),
    "KeyIndex.scrub": lambda a: a.index.scrub(a.name),
    "chain.verify": _chain,
    "packs.export_pack": lambda a: export_pack(a.bank, a.name, a.folder / "p", memory_ids=[a.id], actor=ACTOR),
    "vault.rotate_data": _rotate,
}

NO_NAMESPACE = {
    "Bank.namespaces": "names of all, for whoever runs the bank",
    "Bank.memory_counts": "names and counts of all, for whoever runs the bank",
    "Bank.feed": "brings the index of every namespace up to date",
    "Bank.uses_durable": "of the bank as a whole",
    "Bank.close": "of the bank as a whole",
    "Reviews.waiting": "names and counts of all, for whoever runs the bank",
    "JobQueue.idle": "for a worker, which serves every namespace",
    "JobQueue.depth": "for a worker, which serves every namespace",
    "JobQueue.counts": "numbers of the whole queue",
    "JobQueue.claim": "for a worker, which serves every namespace",
    "TensorStore.namespaces": "for doctor",
    "TensorStore.keeps_deleted": "of the store as a whole",
    "TensorStore.temporary": "for doctor",
    "TensorStore.sweep": "for doctor",
    "KeyIndex.wipe": "of the index as a whole",
    "KeyIndex.close": "of the index as a whole",
}


def public_methods() -> dict[str, Callable[..., Any]]:
    """Every public method of the five, what they inherit included, by ``Class.method``."""
    return {
        f"{kind.__name__}.{name}": method
        for kind in (Bank, Reviews, JobQueue, TensorStore, KeyIndex)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }
