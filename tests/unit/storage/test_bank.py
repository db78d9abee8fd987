"""The bank on SQLite and PostgreSQL: what is published is found, what is evicted is not, nothing crosses tenants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bank_helpers import MODEL, RECIPE, Learn, trained, unit

from elm_agent.records import (
    EventKind,
    Hit,
    JobState,
    KeyKind,
    Route,
    UseOutcome,
    UseRecord,
    new_id,
    utcnow,
)
from elm_agent.storage.bank import Bank

X, Y = unit(1, 0, 0, 0), unit(0, 1, 0, 0)


def ids(hits: list[Hit]) -> list[str]:
    return [hit.memory_id for hit in hits]


def use(memory_id: str, outcome: UseOutcome = UseOutcome.UNKNOWN, **changes: object) -> UseRecord:
    values = {
        "id": new_id("use"),
        "namespace": "default",
        "memory_id": memory_id,
        "question": "q",
        "similarity": 0.5,
        "key_kind": KeyKind.INPUT,
        "route": Route.MEMORY,
        "reason": None,
        "answer": "56\x00\ud800",
        "memory_answer": "56",
        "zero_shot_answer": None,
        "outcome": outcome,
        "created_at": utcnow(),
    }
    return UseRecord(**values | changes)  # type: ignore[arg-type]


def test_a_published_memory_is_the_whole_truth(bank: Bank, learn: Learn) -> None:
    steps: list[str] = []
    memory = learn("What is 7 times 8?", X, kv=unit(1, 2), observe=lambda step, _: steps.append(step))
    assert steps == [
        "tensor.temporary",
        "tensor.durable",
        "publish.before_commit",
        "publish.committed",
        "index.fed",
    ]
    assert bank.memory("default", memory.id) == memory
    assert bank.memories("default") == [memory]
    assert (memory.model, memory.recipe, memory.final_vote_share, memory.revision) == (MODEL, RECIPE, 0.75, 1)
    assert bank.nearest("default", KeyKind.INPUT, X, 1) == [Hit(memory.id, 1.0)]
    assert bank.nearest("default", KeyKind.KV, unit(1, 2), 1) == [Hit(memory.id, pytest.approx(1.0))]
    prompt = bank.prompt("default", memory.id)
    assert prompt.memory_id == memory.id
    expected = trained(X, seed=abs(hash("What is 7 times 8?")) % 1000)
    torch.testing.assert_close(prompt.prompt_VE, expected.prompt.prompt_VE, rtol=0, atol=0)
    episode = bank.episode("default", memory.id)
    assert (episode.curve, episode.rollouts) == (expected.curve, expected.rollouts)
    np.testing.assert_array_equal(bank.keys("default", memory.id).input, X)
    job = bank.jobs.get(memory.job_id or "")
    assert (job.state, job.memory_id, job.owner) == (JobState.DONE, memory.id, None)
    assert [(event.revision, event.kind) for event in bank.events("default")] == [(1, EventKind.CREATED)]
