"""A bank and its model side by side, and how the two are compared. Knows no rules: see ``*_rules``.

After each step: the counts of every namespace and of the queue, and every memory and job that the step touched.
After every twentieth step and at the end of a history: everything, through both banks that are open on the place.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from bank_model import NAMES, Job, Memory, Model, Use
from bank_places import Place
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from elm_agent.errors import NotFound
from elm_agent.protocols import Trained
from elm_agent.records import JobRecord, JobState, KeyKind, MemoryRecord, MemoryState, Recipe
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.ledger import chain
from elm_agent.testing.doubles import FakeTrainer, fake_fingerprint, key_of

MODEL = fake_fingerprint()
RECIPE = Recipe(virtual_tokens=2, rollouts=2, steps=1)
WORDS = ("sum", "of", "two", "and", "three", "times", "minus", "nine")
PAST = datetime(2020, 1, 1, tzinfo=UTC)
EVERY = 20  # steps from one comparison of everything to the next

names = st.sampled_from(NAMES)
questions = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
people = st.sampled_from((None, "ada", "bob"))
seeds = st.integers(0, 30)
picks = st.integers(0, 10_000)  # one of what there is


@dataclass
class Steps:
    """What was really done, over all histories."""

    done: int = 0
    histories: int = 0
    compared: int = 0  # how often everything
    of: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)


def step(**drawn: Any) -> Callable[[Callable[..., None]], Any]:
    """A rule that is counted once it is done and compared."""

    def made(do: Callable[..., None]) -> Any:
        @functools.wraps(do)
        def counted(self: BankBesideModel, **values: Any) -> None:
            began = time.perf_counter()
            self.touched.clear()
            do(self, **values)
            self.compare(do.__name__, began)

        return rule(**drawn)(counted)

    return made


class BankBesideModel(RuleBasedStateMachine):
    """``place``: of this history alone. ``steps``: told every step."""

    def __init__(self, place: Place, steps: Steps) -> None:
        super().__init__()
        self.place, self.steps = place, steps
        self.model = Model()
        self.age = 0  # steps of this history
        self.last: dict[str, int] = {}  # rule: age when it was done
        self.touched: set[str] = set()
        self.owner, self.second = place.open(), None
        self.bank: Bank = self.owner

    def bind(self) -> None:
        for name in NAMES:
            self.bank.bind(name, MODEL)

    def teardown(self) -> None:
        try:
            self.compare_everything()
            self.examine()
            self.steps.histories += 1
        finally:
            self.close()
            self.place.remove()

    def close(self) -> None:
        for bank in (self.second, self.owner):
            if bank is not None:
                bank.close()
        self.second = None

    def rested(self, rule: str, steps: int) -> bool:
        """Whether that many steps have passed since ``rule``, which takes long."""
        return self.age - self.last.get(rule, 0) >= steps

    def memory(self, pick: int) -> tuple[str, Memory]:
        return self._one(self.model.memories, pick)

    def job(self, pick: int) -> tuple[str, Job]:
        return self._one(self.model.jobs, pick)

    def running(self, pick: int) -> tuple[str, Job]:
        return self._one(self.model.running(), pick)

    def use(self, pick: int) -> tuple[str, Use]:
        use_id, use = self._one(self.model.uses, pick)
        self.touched.add(use.memory_id)
        return use_id, use

    def _one(self, of: dict[str, Any], pick: int) -> tuple[str, Any]:
        key = list(of)[pick % len(of)]
        self.touched.add(key)
        return key, of[key]

    # --- comparing ----------------------------------------------------------------------------------------

    def compare(self, rule: str, began: float) -> None:
        self.compare_counts()
        self.compare_touched()
        self.age += 1
        self.last[rule] = self.age
        self.steps.done += 1
        self.steps.of[rule] += 1
        done = time.perf_counter()
        self.steps.seconds[rule] += done - began
        if self.age % EVERY == 0:
            self.compare_everything()
            self.steps.compared += 1
            self.steps.seconds["(comparing everything)"] += time.perf_counter() - done

    def compare_counts(self) -> None:
        found = {name: +Counter(counts) for name, counts in self.bank.memory_counts().items()}
        assert found == {name: +self.model.counts(name) for name in NAMES}
        states = Counter(job.state for job in self.model.jobs.values())
        assert +Counter(self.bank.jobs.counts()) == +states

    def compare_touched(self) -> None:
        memories = [one for one in self.touched if one in self.model.memories]
        expected = self.model.shown(memories)
        for one in memories:
            assert shown(self.bank.memory(self.model.memories[one].namespace, one)) == expected[one]
        for one in self.touched & self.model.jobs.keys():
            assert job_shown(self.bank.jobs.get(self.model.jobs[one].namespace, one)) == self.model.job_shown(one)
        for one in self.touched & self.model.purged.keys():
            with pytest.raises(NotFound):
                self.bank.memory(self.model.purged[one], one)

    def compare_everything(self) -> None:
        for bank in (self.owner, self.second):
            if bank is None:
                continue
            found = {one.id: shown(one) for name in NAMES for one in bank.memories(name)}
            assert found == self.model.shown(self.model.memories)
            assert {one.id: job_shown(one) for one in bank.jobs.list()} == {
                one: self.model.job_shown(one) for one in self.model.jobs
            }
            for name, kind in product(NAMES, KeyKind):
                self.compare_nearest(bank, name, "minus nine", 100, kind, set(), -1.0)
        queue = Counter(job.state for job in self.model.jobs.values())
        assert self.bank.jobs.depth(MODEL.id) == queue[JobState.QUEUED] + queue[JobState.RUNNING]
        for name in NAMES:
            uses = {one.id: (one.memory_id, one.outcome) for one in self.bank.uses(name)}
            mine = {one: use for one, use in self.model.uses.items() if use.namespace == name}
            assert uses == {one: (use.memory_id, use.outcome) for one, use in mine.items()}
            purged = {one for one, namespace in self.model.purged.items() if namespace == name}
            assert {stone.memory_id for stone in self.bank.tombstones(name)} == purged
        for info in self.bank.namespaces():
            revisions = [event.revision for event in self.bank.events(info.name)]
            assert revisions == list(range(1, info.revision + 1)), "events have no gaps"

    def compare_nearest(
        self, bank: Bank, name: str, question: str, k: int, kind: KeyKind, others: set[str], floor: float
    ) -> None:
        """Against the obvious way: every active key, one product, a sort."""
        query = key(question, kind)
        true = {
            one: float(key(memory.keyed, kind).astype(np.float64) @ query.astype(np.float64))
            for one, memory in self.model.memories.items()
            if memory.state is MemoryState.ACTIVE and memory.valid_until != PAST
            if memory.namespace in {name, *others} and memory.named != question
        }
        best = sorted((similarity for similarity in true.values() if similarity >= floor), reverse=True)[:k]
        hits = bank.nearest(
            name, kind, query, k, min_similarity=floor, exclude_question=question, shared=sorted(others)
        )
        assert [hit.similarity for hit in hits] == pytest.approx(best, abs=1e-5)
        assert len({hit.memory_id for hit in hits}) == len(hits)
        for hit in hits:
            memory = self.model.memories[hit.memory_id]
            assert hit.similarity == pytest.approx(true[hit.memory_id], abs=1e-5)
            assert hit.namespace == memory.namespace
            prompt = bank.prompt(hit.namespace, hit.memory_id).prompt_VE
            assert prompt.equal(trained("any", memory.seed).prompt.prompt_VE)

    def examine(self) -> None:
        """Chains, tensors, prompts, and what the doctor says."""
        for name in NAMES:
            assert chain.verify(self.owner.database, name, vault=self.owner.vault).broken is None
        tensors = self.owner.tensors
        stored = {digest for name in NAMES for digest in tensors.digests(name)}
        named = {memory.tensor_digest for name in NAMES for memory in self.owner.memories(name)}
        assert named <= stored
        # what was published in vain waits for the doctor until it is old; equal bytes are one tensor
        assert len(stored - named) <= self.model.late
        report = examine(self.owner, repair=True)
        assert report.findings == ()
        assert report.skipped == ()
        states = Counter(memory.state for memory in self.model.memories.values())
        proven = states.total() - states[MemoryState.QUARANTINED]
        assert report.checked.get("records proven", 0) == proven


def shown(memory: MemoryRecord) -> tuple[Any, ...]:
    return (
        *(memory.namespace, memory.question, memory.state, memory.pinned, memory.valid_until, memory.job_id),
        *(memory.uses, memory.fixed, memory.broken),
    )


def job_shown(job: JobRecord) -> tuple[Any, ...]:
    return (
        *(job.namespace, job.question, job.state, job.attempts, job.priority, job.cancel_requested),
        *(job.memory_id, job.fence if job.state is JobState.RUNNING else None),
    )


key = lru_cache(maxsize=10_000)(key_of)


@lru_cache(maxsize=10_000)
def trained(question: str, seed: int) -> Trained:
    """The prompt depends on the seed alone, the keys on the question alone."""
    return FakeTrainer(steps=1).train(
        question, recipe=RECIPE, seed=seed, observe=lambda *_: None, cancelled=lambda: False
    )
