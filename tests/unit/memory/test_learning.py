"""Gate, seeds and learning one job on a real bank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from elm_agent.errors import InputError, LeaseLost, ModelMismatch, TrainingError
from elm_agent.memory.gate import admit
from elm_agent.memory.learn import learn, memory_seed
from elm_agent.protocols import LEARN_STEPS
from elm_agent.records import JobRecord, JobState, MemoryState, Recipe, StepRecord
from elm_agent.storage.bank import Bank
from elm_agent.storage.queue.jobs import Lease
from elm_agent.testing.doubles import FakeTrainer, fake_fingerprint

STEP = FakeTrainer()._step(0, Recipe())
MODEL = fake_fingerprint()


def curve(*shares: float) -> list[StepRecord]:
    return [
        replace(STEP, step=n, vote_share=share, majority_answer="1" if share else None)
        for n, share in enumerate(shares)
    ]


@pytest.mark.parametrize(
    ("shares", "threshold", "state"),
    [
        ((0.2, 0.5), 0.0, MemoryState.ACTIVE),
        ((0.2, 0.5), 0.5, MemoryState.ACTIVE),
        ((0.9, 0.4), 0.5, MemoryState.CANDIDATE),
        ((0.0, 0.0), 0.0, MemoryState.CANDIDATE),
        ((0.0, 0.25), 0.0, MemoryState.ACTIVE),
        ((0.25, 0.0), 0.0, MemoryState.ACTIVE),
    ],
)
def test_the_gate(shares: tuple[float, ...], threshold: float, state: MemoryState) -> None:
    admitted, reason = admit(curve(*shares), Recipe(min_vote_share=threshold))
    assert admitted is state
    assert (reason is None) == (state is MemoryState.ACTIVE)


def test_a_curve_without_steps_is_an_error() -> None:
    with pytest.raises(TrainingError):
        admit([], Recipe())


def test_the_seed_depends_on_recipe_and_question_alone() -> None:
    seed = memory_seed(Recipe(), "What is 7 times 8?")
    assert seed == memory_seed(Recipe(steps=3), " What is  7 times 8?\n")
    assert seed != memory_seed(Recipe(seed=1), "What is 7 times 8?")
    assert seed != memory_seed(Recipe(), "What is 7 times 9?")
    assert 0 <= seed < 2**48


def lease_of(bank: Bank) -> Lease:
    lease = bank.jobs.claim("me", lease_seconds=60)
    assert lease is not None
    return lease


def learn_it(bank: Bank, lease: Lease, trainer: FakeTrainer | None = None, **more: Any) -> Any:
    values: dict[str, Any] = {"observe": lambda _name, _detail: None, "cancelled": lambda: False} | more
    return learn(lease, trainer=trainer or FakeTrainer(), bank=bank, **({"model_fingerprint": MODEL} | values))


def test_one_job_becomes_one_memory(bank: Bank, enqueue: Callable[..., JobRecord]) -> None:
    job = enqueue()
    told: list[str] = []
    memory = learn_it(bank, lease_of(bank), observe=lambda name, _detail: told.append(name))
    assert told == ["train.step", "train.step", *LEARN_STEPS[LEARN_STEPS.index("train.done") :]]
    assert (memory.state, memory.job_id, memory.question) == (MemoryState.ACTIVE, job.id, job.question)
    assert bank.episode("ns", memory.id).seed == memory_seed(job.recipe, job.question)
    assert bank.jobs.get(job.namespace, job.id).state is JobState.DONE


def test_a_memory_without_votes_stays_a_candidate(bank: Bank, enqueue: Callable[..., JobRecord]) -> None:
    enqueue()
    memory = learn_it(bank, lease_of(bank), FakeTrainer(majority_answer=None))
    assert memory.state is MemoryState.CANDIDATE
    assert "none of 2 steps" in str(memory.reason)


def test_another_model_is_refused(bank: Bank, enqueue: Callable[..., JobRecord]) -> None:
    enqueue()
    with pytest.raises(ModelMismatch, match="start a worker with the model"):
        learn_it(bank, lease_of(bank), model_fingerprint=fake_fingerprint("another"))


def test_keys_that_could_not_be_stored_are_refused_before_training(
    bank: Bank, enqueue: Callable[..., JobRecord]
) -> None:
    enqueue()
    learn_it(bank, lease_of(bank))
    enqueue("What is 9?", recipe=Recipe(steps=2, kv_heads="keep"))
    trainer = FakeTrainer()
    with pytest.raises(InputError, match="made with `kv_heads` 'mean', this job has 'keep'"):
        learn_it(bank, lease_of(bank), trainer)
    assert trainer.trained == []


def test_what_is_for_studies_is_refused_before_training(bank: Bank, enqueue: Callable[..., JobRecord]) -> None:
    enqueue()
    lease, trainer = lease_of(bank), FakeTrainer()
    full = replace(lease.job, recipe=replace(lease.job.recipe, parameterisation="full"))
    with pytest.raises(InputError, match="is for studies and never kept in a bank"):
        learn_it(bank, replace(lease, job=full), trainer)
    assert trainer.trained == []


def test_a_late_result_is_refused(bank: Bank, enqueue: Callable[..., JobRecord]) -> None:
    enqueue()
    old = bank.jobs.claim("slow", lease_seconds=-1)
    assert old is not None
    learn_it(bank, lease_of(bank))
    with pytest.raises(LeaseLost):
        learn_it(bank, old)
    assert len(bank.memories("ns")) == 1
