"""The bank on SQLite and PostgreSQL: what is published is found, what is evicted is not, nothing crosses tenants."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from bank_helpers import MODEL, RECIPE, Learn, learner, seed_of, trained, unit
from sqlalchemy import event

from elm_agent.bench import filling
from elm_agent.errors import (
    InputError,
    LeaseLost,
    ModelMismatch,
    NotFound,
    SettingsError,
    StorageError,
    TensorCorrupt,
    TensorMissing,
)
from elm_agent.records import (
    EventKind,
    Hit,
    JobState,
    KeyKind,
    MemoryState,
    UseOutcome,
    UseRecord,
)
from elm_agent.storage.bank import Bank
from elm_agent.storage.queue.jobs import Lease
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors

X, Y = unit(1, 0, 0, 0), unit(0, 1, 0, 0)


def ids(hits: list[Hit]) -> list[str]:
    return [hit.memory_id for hit in hits]


def use(memory_id: str, outcome: UseOutcome = UseOutcome.UNKNOWN, *, namespace: str = "default") -> UseRecord:
    return filling.use_of(namespace, memory_id, question="q", answer="56", memory_answer="56", outcome=outcome)


def test_a_published_memory_is_the_whole_truth(bank: Bank, learn: Learn) -> None:
    steps: list[str] = []
    question = "What is 7 times 8?"
    memory = learn(question, X, kv=unit(1, 2), observe=lambda step, _: steps.append(step))
    assert steps == [
        "tensor.temporary",
        "tensor.durable",
        "publish.before_commit",
        "publish.committed",
        "index.fed",
    ]
    assert bank.memory("default", memory.id) == memory
    assert bank.memories("default") == [memory]
    assert (memory.model, memory.recipe, memory.final_vote_share, memory.revision) == (MODEL, RECIPE, 0.75, 3)
    assert bank.nearest("default", KeyKind.INPUT, X, 1) == [Hit(memory.id, 1.0, "default")]
    assert ids(bank.nearest("default", KeyKind.KV, unit(1, 2), 1)) == [memory.id]
    expected = trained(X, seed=seed_of(question))
    prompt = bank.prompt("default", memory.id)
    assert prompt.memory_id == memory.id
    torch.testing.assert_close(prompt.prompt_VE, expected.prompt.prompt_VE, rtol=0, atol=0)
    episode = bank.episode("default", memory.id)
    assert (episode.curve, episode.rollouts) == (expected.curve, expected.rollouts)
    np.testing.assert_array_equal(bank.keys("default", memory.id).input, X)
    job = bank.jobs.get("default", memory.job_id or "")
    assert (job.state, job.memory_id, job.owner) == (JobState.DONE, memory.id, None)
    written = [(event.revision, event.kind) for event in bank.events("default")]
    assert written == [(1, EventKind.CREATED), (2, EventKind.GATED), (3, EventKind.ACTIVATED)]


def test_a_failure_before_the_commit_leaves_a_tensor_and_nothing_else(bank: Bank, learn: Learn) -> None:
    def crash(step: str, _: dict[str, object]) -> None:
        if step == "publish.before_commit":
            raise StorageError("crashed")

    with pytest.raises(StorageError, match="crashed"):
        learn("q", X, observe=crash)
    assert bank.memories("default") == []
    assert bank.events("default") == []
    assert bank.jobs.counts()[JobState.RUNNING] == 1
    assert len(list(bank.tensors.digests("default"))) == 1


def test_publish_after_a_takeover_is_refused(bank: Bank) -> None:
    bank.jobs.enqueue("default", "q", task="math", model_id=MODEL.id, recipe=RECIPE)
    old = bank.jobs.claim("old", lease_seconds=-1)
    new = bank.jobs.claim("new", lease_seconds=60)
    assert old is not None
    assert new is not None
    how = {"task": "math", "model": MODEL, "recipe": RECIPE, "state": MemoryState.ACTIVE, "reason": None}
    with pytest.raises(LeaseLost, match="held by old"):
        bank.publish(old, trained(X), **how)
    assert bank.memories("default") == []
    memory = bank.publish(new, trained(X), **how)
    with pytest.raises(LeaseLost, match="done"):
        bank.publish(new, trained(X), **how)
    assert bank.memories("default") == [memory]


def test_unusable_results_are_refused_before_anything_is_written(bank: Bank, learn: Learn) -> None:
    with pytest.raises(InputError, match="unit length"):
        learn("q", np.ones(4, dtype=np.float32))
    assert list(bank.tensors.digests("default")) == []
    bank.jobs.release(_running(bank), "refused")
    learn("q", X, kv=unit(1, 2))
    with pytest.raises(InputError, match=r"width 2, got 3: keep `learning.kv_heads`"):
        learn("other", X, kv=unit(1, 2, 3))
    assert len(bank.memories("default")) == 1


def _running(bank: Bank) -> Lease:
    (job,) = bank.jobs.list(state=JobState.RUNNING)
    return Lease(job, job.owner or "", job.fence)


def test_a_namespace_is_for_one_model(bank: Bank) -> None:
    bank.bind("default", dataclasses.replace(MODEL, name="another name"))
    other = dataclasses.replace(MODEL, name="big", tokenizer="sha256:other")
    with pytest.raises(ModelMismatch, match=r"made for model 'tiny', got 'big' \(they differ in tokenizer\)"):
        bank.bind("default", other)
    bank.bind("second", other)
    assert [(info.name, info.model.name, info.revision) for info in bank.namespaces()] == [
        ("default", "tiny", 0),
        ("second", "big", 0),
    ]
    with pytest.raises(SettingsError, match="not usable"):
        bank.bind("../x", MODEL)


def test_nothing_is_found_from_another_namespace(bank: Bank, learn: Learn) -> None:
    bank.bind("other", MODEL)
    memory = learn("q", X)
    assert bank.nearest("other", KeyKind.INPUT, X, 5) == []
    assert bank.memories("other") == []
    calls = [
        lambda: bank.prompt("other", memory.id),
        lambda: bank.memory("other", memory.id),
        lambda: bank.episode("other", memory.id),
        lambda: bank.keys("other", memory.id),
        lambda: bank.transition("other", memory.id, MemoryState.RETIRED, actor="t", reason=None),
        lambda: bank.pin("other", memory.id, True, actor="t"),
        lambda: bank.record_use(use(memory.id, namespace="other")),
        lambda: bank.nearest("nowhere", KeyKind.INPUT, X, 1),
        lambda: bank.memories("nowhere"),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            call()


def test_nearest_orders_filters_and_excludes(bank: Bank, learn: Learn) -> None:
    near = learn("near", unit(1, 0.1, 0, 0))
    far = learn("far", unit(1, 1, 0, 0))
    opposite = learn("opposite", -X)
    learn("candidate", X, state=MemoryState.CANDIDATE)
    assert ids(bank.nearest("default", KeyKind.INPUT, X, 9)) == [near.id, far.id, opposite.id]
    assert ids(bank.nearest("default", KeyKind.INPUT, X, 2)) == [near.id, far.id]
    assert ids(bank.nearest("default", KeyKind.INPUT, X, 9, min_similarity=0.5)) == [near.id, far.id]
    assert ids(bank.nearest("default", KeyKind.INPUT, X, 1, exclude_question="  near ")) == [far.id]
    assert bank.nearest("default", KeyKind.INPUT, X, 0) == []
    assert bank.nearest("default", KeyKind.KV, X, 1) == []


def test_enough_is_found_behind_many_unusable_neighbours(bank: Bank, learn: Learn) -> None:
    far = learn("far", Y)
    for seed in range(1, 13):  # made from one question under many recipes: all of them are passed over
        recipe = dataclasses.replace(RECIPE, seed=seed)
        bank.jobs.enqueue("default", "same", task="math", model_id=MODEL.id, recipe=recipe)
        lease = bank.jobs.claim("w", lease_seconds=60)
        assert lease is not None
        bank.publish(
            lease, trained(X), task="math", model=MODEL, recipe=recipe, state=MemoryState.ACTIVE, reason=None
        )
    assert ids(bank.nearest("default", KeyKind.INPUT, X, 1, exclude_question="same")) == [far.id]


def test_changes_of_another_process_are_seen_at_once(database_url: str, bank: Bank, learn: Learn) -> None:
    other = Bank(Database.open(database_url), bank.tensors)
    memory = learn("q", X)
    assert ids(other.nearest("default", KeyKind.INPUT, X, 1)) == [memory.id]
    second = learner(other)("second", Y)
    assert ids(bank.nearest("default", KeyKind.INPUT, Y, 1)) == [second.id]
    bank.transition("default", memory.id, MemoryState.RETIRED, actor="t", reason="old")
    assert ids(other.nearest("default", KeyKind.INPUT, X, 2)) == [second.id]
    other.transition("default", memory.id, MemoryState.ACTIVE, actor="t", reason=None)
    assert ids(bank.nearest("default", KeyKind.INPUT, X, 1)) == [memory.id]
    other.close()


def test_the_life_of_a_memory_is_written_down_without_gaps(bank: Bank, learn: Learn) -> None:
    memory = learn("q", X, state=MemoryState.CANDIDATE)
    change = {"actor": "ann", "reason": "because"}
    bank.transition("default", memory.id, MemoryState.ACTIVE, **change)
    bank.pin("default", memory.id, True, actor="ann")
    bank.pin("default", memory.id, True, actor="ann")
    with pytest.raises(InputError, match="is pinned: unpin it"):
        bank.transition("default", memory.id, MemoryState.RETIRED, **change)
    bank.pin("default", memory.id, False, actor="ann")
    evicted = bank.transition("default", memory.id, MemoryState.RETIRED, **change)
    assert (evicted.state, evicted.reason, evicted.revision) == (MemoryState.RETIRED, "because", 6)
    assert bank.transition("default", memory.id, MemoryState.RETIRED, **change) == evicted
    bank.transition("default", memory.id, MemoryState.ACTIVE, **change)
    bank.transition("default", memory.id, MemoryState.QUARANTINED, **change)
    bank.repaired("default", memory.id, actor="doctor", detail={"what": "tensor"})
    with pytest.raises(InputError, match="cannot become candidate"):
        bank.transition("default", memory.id, MemoryState.CANDIDATE, **change)
    events = bank.events("default", memory.id)
    assert [event.revision for event in events] == list(range(1, 10))
    assert [event.kind.value for event in events] == [
        "created",
        "gated",
        "activated",
        "pinned",
        "unpinned",
        "evicted",
        "restored",
        "quarantined",
        "repaired",
    ]
    assert (events[2].detail, events[2].note) == ({"from": "candidate", "to": "active"}, "because")
    assert events == bank.events("default")
    (info,) = bank.namespaces()
    assert info.revision == 9
    counts = bank.memory_counts()
    assert counts == {"default": dict.fromkeys(MemoryState, 0) | {MemoryState.QUARANTINED: 1}}


def test_namespaces_are_listed_without_a_look_at_their_memories(bank: Bank, learn: Learn) -> None:
    learn("a", X)
    read: list[str] = []
    event.listen(bank.database.engine, "before_cursor_execute", lambda *args: read.append(args[2]))
    assert [info.name for info in bank.namespaces()] == ["default"]
    assert [one for one in read if "namespaces" in one]
    assert [one for one in read if "memories" in one or "tombstones" in one] == []


def test_uses_are_counted_exactly(bank: Bank, learn: Learn) -> None:
    first, second = learn("a", X), learn("b", Y)
    fixed, unsettled = use(first.id, UseOutcome.FIXED), use(first.id)
    for record in (fixed, fixed, unsettled, use(second.id, UseOutcome.BOTH_RIGHT)):
        bank.record_use(record)
    bank.settle_use("default", unsettled.id, UseOutcome.BROKEN)
    with pytest.raises(NotFound, match="no use"):
        bank.settle_use("default", "use_x", UseOutcome.BROKEN)
    record = bank.memory("default", first.id)
    assert (record.uses, record.fixed, record.broken) == (2, 1, 1)
    assert [memory.id for memory in bank.memories("default", order="-uses")] == [first.id, second.id]
    assert [memory.id for memory in bank.memories("default", order="created_at", limit=1, offset=1)] == [second.id]
    assert bank.memories("default", state=MemoryState.RETIRED) == []
    with pytest.raises(InputError, match="ordered by 'colour'"):
        bank.memories("default", order="colour")
    assert [entry.id for entry in bank.uses("default", first.id)] == [unsettled.id, fixed.id]
    assert bank.uses("default", first.id)[1] == fixed
    assert len(bank.uses("default", limit=2)) == 2


def test_text_that_no_database_takes_is_kept_readable(bank: Bank, learn: Learn) -> None:
    memory = learn("q", X)
    bank.record_use(dataclasses.replace(use(memory.id), answer="5\x006\ud800"))
    assert bank.uses("default")[0].answer == "5\ufffd6\ufffd"


def test_a_missing_or_altered_tensor_is_never_served(bank: Bank, learn: Learn, tmp_path: Path) -> None:
    altered, missing = learn("a", X), learn("b", Y)
    (path,) = (tmp_path / "tensors").rglob(altered.tensor_digest.removeprefix("sha256:") + "*")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    bank.tensors.delete("default", missing.tensor_digest)
    with pytest.raises(TensorCorrupt, match="was altered"):
        bank.prompt("default", altered.id)
    with pytest.raises(TensorMissing):
        bank.prompt("default", missing.id)


def test_auto_scans_and_says_why_when_chroma_is_not_here(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bank = Bank(database, LocalTensors(tmp_path), exact_limit=1)
    bank.bind("default", MODEL)
    learn = learner(bank)
    learn("a", X)
    with caplog.at_level(logging.WARNING):
        bank.nearest("default", KeyKind.INPUT, X, 1)
        assert caplog.records == []
        second = learn("b", Y)
        for _ in range(2):
            assert ids(bank.nearest("default", KeyKind.INPUT, Y, 1)) == [second.id]
    (record,) = caplog.records
    assert "no durable index" in record.getMessage()
    assert "exact scan" in record.getMessage()
