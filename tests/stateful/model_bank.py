"""A bank beside plain dictionaries: whatever is done to both, both say the same. Hypothesis chooses what is done."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from elm_agent.errors import InputError, LeaseLost, NotFound
from elm_agent.records import (
    JobState,
    KeyKind,
    MemoryKeys,
    MemoryState,
    Recipe,
    Route,
    UseOutcome,
    UseRecord,
    new_id,
    utcnow,
)
from elm_agent.storage import upkeep
from elm_agent.storage.bank import Adopted, Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.ledger import chain
from elm_agent.storage.queue.jobs import Lease
from elm_agent.testing.doubles import FakeTrainer, fake_fingerprint, key_of

MODEL = fake_fingerprint()
RECIPE = Recipe(virtual_tokens=2, rollouts=2, steps=1)
NAMES = ("alpha", "beta")
WORDS = ("sum", "of", "two", "and", "three", "times", "minus", "nine")
_GOES = {  # (from, to): every way there is
    (MemoryState.CANDIDATE, MemoryState.ACTIVE),
    (MemoryState.RETIRED, MemoryState.ACTIVE),
    (MemoryState.QUARANTINED, MemoryState.ACTIVE),
    (MemoryState.CANDIDATE, MemoryState.RETIRED),
    (MemoryState.ACTIVE, MemoryState.RETIRED),
    (MemoryState.QUARANTINED, MemoryState.RETIRED),
    (MemoryState.CANDIDATE, MemoryState.QUARANTINED),
    (MemoryState.ACTIVE, MemoryState.QUARANTINED),
    (MemoryState.RETIRED, MemoryState.QUARANTINED),
}

names = st.sampled_from(NAMES)
questions = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
people = st.sampled_from((None, "ada", "bob"))
picks = st.integers(0, 10_000)  # one of what there is


@dataclass
class Memory:
    """What the model knows of one memory."""

    namespace: str
    question: str
    state: MemoryState
    subject: str | None
    job_id: str | None
    pinned: bool = False


@dataclass
class Job:
    """What the model knows of one job."""

    namespace: str
    question: str
    subject: str | None
    place: int  # in the queue
    state: JobState = JobState.QUEUED
    attempts: int = 0
    cancel: bool = False
    lease: Lease | None = None


@dataclass
class Use:
    """What the model knows of one use: where it was, and of which memory."""

    namespace: str
    home: str
    memory_id: str
    subject: str | None
    outcome: UseOutcome = UseOutcome.UNKNOWN


@dataclass
class Steps:
    """How many rules were run, over all examples."""

    done: int = 0
    of: Counter[str] = field(default_factory=Counter)


class ModelBank(RuleBasedStateMachine):
    """``open_bank``: the bank of this example, opened again and again. ``counted``: told every step."""

    def __init__(self, open_bank: Callable[[], Bank], counted: Steps, close: Callable[[], None]) -> None:
        super().__init__()
        self.open_bank, self.counted, self.close = open_bank, counted, close
        self.bank = open_bank()
        self.memories: dict[str, Memory] = {}
        self.jobs: dict[str, Job] = {}
        self.uses: dict[str, Use] = {}
        self.purged: dict[str, str] = {}
        self.adopted: dict[tuple[str, int], str] = {}  # (namespace, seed): id
        self.queued = 0

    @initialize()
    def bind(self) -> None:
        for name in NAMES:
            self.bank.bind(name, MODEL)

    def teardown(self) -> None:
        try:
            self._check_ledger()
        finally:
            self.bank.close()
            self.close()

    # --- jobs ---------------------------------------------------------------------------------------------

    @rule(name=names, question=questions, subject=people)
    def enqueue(self, name: str, question: str, subject: str | None) -> None:
        known = {(job.namespace, job.question): job_id for job_id, job in self.jobs.items()}
        job, created = self.bank.jobs.enqueue(
            name, question, task="math", model_id=MODEL.id, recipe=RECIPE, subject=subject
        )
        assert created == ((name, question) not in known)
        if created:
            self.queued += 1
            self.jobs[job.id] = Job(name, question, subject, self.queued)
        else:
            assert job.id == known[name, question]

    @rule()
    def claim(self) -> None:
        waiting = sorted((job.place, job_id) for job_id, job in self.jobs.items() if job.state is JobState.QUEUED)
        lease = self.bank.jobs.claim("worker", lease_seconds=3600)
        assert (lease.job.id if lease else None) == (waiting[0][1] if waiting else None), "the oldest comes first"
        if lease is not None:
            job = self.jobs[lease.job.id]
            job.state, job.lease, job.attempts = JobState.RUNNING, lease, job.attempts + 1

    @precondition(lambda self: self._running())
    @rule(pick=picks, state=st.sampled_from((MemoryState.ACTIVE, MemoryState.CANDIDATE)))
    def finish(self, pick: int, state: MemoryState) -> None:
        job_id, job = _one(self._running(), pick)
        assert job.lease is not None
        made = self.bank.publish(
            job.lease, self._trained(job.question), task="math", model=MODEL, recipe=RECIPE, state=state, reason="why"
        )
        self.memories[made.id] = Memory(job.namespace, job.question, state, job.subject, job_id)
        job.state, job.lease, job.cancel = JobState.DONE, None, False

    @precondition(lambda self: self._running())
    @rule(pick=picks, retry=st.booleans())
    def fail(self, pick: int, retry: bool) -> None:
        _, job = _one(self._running(), pick)
        assert job.lease is not None
        self.bank.jobs.fail(job.lease, "it broke", backoff_seconds=0, retry=retry)
        again = retry and job.attempts < 3
        ended = JobState.CANCELLED if job.cancel else JobState.QUEUED if again else JobState.FAILED
        with pytest.raises(LeaseLost):
            self.bank.jobs.heartbeat(job.lease, lease_seconds=1)
        job.state, job.lease, job.cancel = ended, None, False

    @precondition(lambda self: self.jobs)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        job_id, job = _one(self.jobs, pick)
        self.bank.jobs.cancel(job.namespace, job_id)
        if job.state is JobState.QUEUED:
            job.state = JobState.CANCELLED
        job.cancel = job.state is JobState.RUNNING

    @precondition(lambda self: self.jobs)
    @rule(pick=picks)
    def retry(self, pick: int) -> None:
        job_id, job = _one(self.jobs, pick)
        if job.state in (JobState.FAILED, JobState.CANCELLED):
            self.bank.jobs.retry(job.namespace, job_id)
            job.state, job.attempts = JobState.QUEUED, 0
        else:
            with pytest.raises(InputError):
                self.bank.jobs.retry(job.namespace, job_id)

    # --- memories -----------------------------------------------------------------------------------------

    @precondition(lambda self: self.memories)
    @rule(pick=picks, to=st.sampled_from((MemoryState.ACTIVE, MemoryState.RETIRED, MemoryState.QUARANTINED)))
    def transition(self, pick: int, to: MemoryState) -> None:
        memory_id, memory = _one(self.memories, pick)
        allowed = memory.state == to or (
            (memory.state, to) in _GOES and not (to is MemoryState.RETIRED and memory.pinned)
        )
        if not allowed:
            with pytest.raises(InputError):
                self.bank.transition(memory.namespace, memory_id, to, actor="test", reason=None)
            return
        self.bank.transition(memory.namespace, memory_id, to, actor="test", reason="so")
        memory.state = to

    @precondition(lambda self: self.memories)
    @rule(some=st.lists(picks, max_size=4), name=names)
    def evict(self, some: list[int], name: str) -> None:
        asked = {_one(self.memories, pick)[0] for pick in some}
        mine = {one for one in asked if self.memories[one].namespace == name}
        goes = [one for one in mine if not self.memories[one].pinned]
        expected = sorted(one for one in goes if self.memories[one].state is not MemoryState.RETIRED)
        assert self.bank.evict(name, dict.fromkeys([*asked, "mem_never"], "old"), actor="policy") == expected
        for memory_id in expected:
            self.memories[memory_id].state = MemoryState.RETIRED

    @precondition(lambda self: self.memories)
    @rule(pick=picks, pinned=st.booleans())
    def pin(self, pick: int, pinned: bool) -> None:
        memory_id, memory = _one(self.memories, pick)
        self.bank.pin(memory.namespace, memory_id, pinned, actor="test")
        memory.pinned = pinned

    @precondition(lambda self: self.memories)
    @rule(pick=picks)
    def review(self, pick: int) -> None:
        memory_id, memory = _one(self.memories, pick)
        self.bank.review(memory.namespace, memory_id, actor="test", verdict="good", note="fine")

    @rule(name=names, seeds=st.lists(st.integers(0, 30), min_size=1, max_size=4), question=questions)
    def adopt(self, name: str, seeds: list[int], question: str) -> None:
        state = MemoryState.ACTIVE if seeds[0] % 2 else MemoryState.CANDIDATE
        items = [self._adopted(question, seed, state) for seed in seeds]
        for seed, (memory_id, created) in zip(seeds, self.bank.adopt(name, items, actor="test"), strict=True):
            assert created == ((name, seed) not in self.adopted)
            if created:
                self.adopted[name, seed] = memory_id
                self.memories[memory_id] = Memory(name, question, state, None, None)
            assert self.adopted[name, seed] == memory_id

    @precondition(lambda self: self.memories)
    @rule(some=st.lists(picks, min_size=1, max_size=3), name=names)
    def purge(self, some: list[int], name: str) -> None:
        asked = sorted({_one(self.memories, pick)[0] for pick in some})
        if any(self.memories[one].namespace != name for one in asked):
            with pytest.raises(NotFound):
                self.bank.purge(name, asked, actor="test", reason=None)
        elif any(self.memories[one].pinned for one in asked):
            with pytest.raises(InputError):
                self.bank.purge(name, asked, actor="test", reason=None)
        else:
            self.bank.purge(name, asked, actor="test", reason="enough")
            self._gone(asked)

    @rule(subject=st.sampled_from(("ada", "bob", "eve")), name=st.sampled_from((None, *NAMES)))
    def forget(self, subject: str, name: str | None) -> None:
        mine = [one for one, memory in self.memories.items() if memory.subject == subject]
        mine = [one for one in mine if name in (None, self.memories[one].namespace)]
        done = self.bank.forget_subject(subject, namespace=name, actor="test")
        assert sorted(one for entry in done for one in entry.memory_ids) == sorted(mine)
        self._gone(mine)

        def left(entry: Job | Use) -> bool:
            return not (entry.subject == subject and name in (None, entry.namespace))

        self.jobs = {one: job for one, job in self.jobs.items() if left(job)}
        self.uses = {one: use for one, use in self.uses.items() if left(use)}

    # --- uses ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.memories)
    @rule(pick=picks, name=names, subject=people)
    def use(self, pick: int, name: str, subject: str | None) -> None:
        memory_id, memory = _one(self.memories, pick)
        use = Use(name, memory.namespace, memory_id, subject)
        record = _use_record(use)
        self.bank.record_use(record)
        self.bank.record_use(record)  # twice is once
        self.uses[record.id] = use

    @precondition(lambda self: self.uses)
    @rule(pick=picks, outcome=st.sampled_from(UseOutcome))
    def settle(self, pick: int, outcome: UseOutcome) -> None:
        use_id, use = _one(self.uses, pick)
        self.bank.settle_use(use.namespace, use_id, outcome)
        use.outcome = outcome

    @rule(name=names, keep=st.sampled_from((0, 5)))
    def look_after(self, name: str, keep: int) -> None:
        of: dict[str, Any] = {"actor": "upkeep", "vault": self.bank.vault, "tell": lambda *_: None}
        list(upkeep.count_uses(self.bank.database, name, **of))
        list(upkeep.prune_outbox(self.bank.database, name, **of, keep=keep))

    # --- the bank as a whole ------------------------------------------------------------------------------

    @rule()
    def reopen(self) -> None:
        self.bank.close()
        self.bank = self.open_bank()

    @rule()
    def doctor(self) -> None:
        report = examine(self.bank, repair=True)
        assert report.findings == ()
        assert report.skipped == ()
        assert report.checked.get("records proven", 0) == sum(
            memory.state is not MemoryState.QUARANTINED for memory in self.memories.values()
        )

    @rule(
        name=names,
        question=questions,
        k=st.integers(1, 6),
        kind=st.sampled_from(KeyKind),
        shared=st.booleans(),
        floor=st.sampled_from((-1.0, 0.3)),
    )
    def nearest(self, name: str, question: str, k: int, kind: KeyKind, shared: bool, floor: float) -> None:
        """Against the obvious way: every active key, one product, a sort."""
        query, within = key_of(question, kind), NAMES if shared else (name,)
        true = {
            one: float(key_of(memory.question, kind).astype(np.float64) @ query.astype(np.float64))
            for one, memory in self.memories.items()
            if memory.state is MemoryState.ACTIVE and memory.namespace in within and memory.question != question
        }
        best = sorted((similarity for similarity in true.values() if similarity >= floor), reverse=True)[:k]
        others = tuple(other for other in NAMES if other != name) if shared else ()
        hits = self.bank.nearest(name, kind, query, k, min_similarity=floor, exclude_question=question, shared=others)
        assert [hit.similarity for hit in hits] == pytest.approx(best, abs=1e-5)
        assert len({hit.memory_id for hit in hits}) == len(hits)
        for hit in hits:
            assert hit.similarity == pytest.approx(true[hit.memory_id], abs=1e-5)
            assert hit.namespace == self.memories[hit.memory_id].namespace
            assert self.bank.prompt(hit.namespace, hit.memory_id).virtual_tokens == RECIPE.virtual_tokens

    # --- what always holds --------------------------------------------------------------------------------

    @invariant()
    def memories_agree(self) -> None:
        self.counted.done += 1
        for name in NAMES:
            outcomes: dict[str, Counter[UseOutcome]] = {}
            for use in self.uses.values():
                outcomes.setdefault(use.memory_id, Counter())[use.outcome] += 1
            expected = {
                one: (memory.state, memory.pinned, memory.question, sum(outcomes.get(one, Counter()).values()))
                for one, memory in self.memories.items()
                if memory.namespace == name
            }
            found = {one.id: one for one in self.bank.memories(name)}
            assert {
                one: (memory.state, memory.pinned, memory.question, memory.uses) for one, memory in found.items()
            } == expected
            for one, memory in found.items():
                assert memory.fixed == outcomes.get(one, Counter())[UseOutcome.FIXED]
            assert {stone.memory_id for stone in self.bank.tombstones(name)} == {
                one for one, namespace in self.purged.items() if namespace == name
            }

    @invariant()
    def jobs_agree(self) -> None:
        found = {job.id: (job.state, job.attempts) for job in self.bank.jobs.list()}
        assert found == {one: (job.state, job.attempts) for one, job in self.jobs.items()}

    @invariant()
    def events_have_no_gaps(self) -> None:
        for info in self.bank.namespaces():
            revisions = [event.revision for event in self.bank.events(info.name)]
            assert revisions == list(range(1, info.revision + 1))

    def _check_ledger(self) -> None:
        for name in NAMES:
            assert chain.verify(self.bank.database, name, vault=self.bank.vault).broken is None
        for memory_id, name in self.purged.items():
            with pytest.raises(NotFound):
                self.bank.memory(name, memory_id)
        assert {digest for name in NAMES for digest in self.bank.tensors.digests(name)} == {
            memory.tensor_digest for name in NAMES for memory in self.bank.memories(name)
        }

    # --- helpers ------------------------------------------------------------------------------------------

    def _running(self) -> dict[str, Job]:
        return {one: job for one, job in self.jobs.items() if job.state is JobState.RUNNING}

    def _gone(self, memory_ids: list[str]) -> None:
        for memory_id in memory_ids:
            memory = self.memories.pop(memory_id)
            self.purged[memory_id] = memory.namespace
            if memory.job_id is not None:
                self.jobs.pop(memory.job_id, None)
        gone = set(memory_ids)
        self.uses = {one: use for one, use in self.uses.items() if use.memory_id not in gone}
        self.adopted = {key: one for key, one in self.adopted.items() if one not in gone}

    def _trained(self, question: str) -> Any:
        seed = int.from_bytes(f"{len(self.memories)} {question}".encode()[:6])
        made = FakeTrainer(steps=1).train(
            question, recipe=RECIPE, seed=seed, observe=lambda *_: None, cancelled=lambda: False
        )
        return dataclasses.replace(made, seconds=0.5)

    def _adopted(self, question: str, seed: int, state: MemoryState) -> Adopted:
        made = FakeTrainer(steps=1).train(
            question, recipe=RECIPE, seed=10**9 + seed, observe=lambda *_: None, cancelled=lambda: False
        )
        keys = MemoryKeys(input=made.keys.input, kv=made.keys.kv)
        return Adopted(
            question=question,
            task="math",
            prompt=made.prompt,
            keys=keys,
            model=MODEL,
            recipe=RECIPE,
            origin="pack:test",
            state=state,
            curve=made.curve,
            rollouts=made.rollouts,
        )


def _one(of: dict[str, Any], pick: int) -> tuple[str, Any]:
    key = sorted(of)[pick % len(of)]
    return key, of[key]


def _use_record(use: Use) -> UseRecord:
    return UseRecord(
        id=new_id("use"),
        namespace=use.namespace,
        memory_id=use.memory_id,
        memory_namespace="" if use.home == use.namespace else use.home,
        question="asked",
        similarity=0.5,
        key_kind=KeyKind.INPUT,
        route=Route.MEMORY,
        reason=None,
        answer="1",
        memory_answer="1",
        zero_shot_answer="2",
        outcome=UseOutcome.UNKNOWN,
        created_at=utcnow(),
        subject=use.subject,
    )
