"""Purging and forgetting: nothing is left but a tombstone, and a crash in between is finished later."""

from __future__ import annotations

import dataclasses
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bank_helpers import MODEL, RECIPE, trained, unit
from sqlalchemy import event, insert, text
from sqlalchemy.orm import Session

from elm_agent.bench.filling import use_of
from elm_agent.errors import BankMoved, InputError, LeaseLost, NotFound, StorageError
from elm_agent.records import EventKind, Hit, KeyKind, MemoryState, UseRecord, utcnow
from elm_agent.storage import purge
from elm_agent.storage.bank import Bank
from elm_agent.storage.indexes.chroma import ChromaIndex
from elm_agent.storage.keeping import DELETED
from elm_agent.storage.ledger import chain
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.rows import use_values
from elm_agent.storage.sql.schema import Base, MemoryRow, NamespaceRow, TombstoneRow, UseRow
from elm_agent.storage.tensors.local import LocalTensors

X, Y = unit(1, 0, 0, 0), unit(0, 1, 0, 0)
MARK = "xylophone"  # in every text of what is to go


def use(memory_id: str, *, namespace: str = "default", home: str = "", subject: str | None = None) -> UseRecord:
    return use_of(
        namespace,
        memory_id,
        memory_namespace=home,
        subject=subject,
        question=f"a question of {MARK}",
        answer=MARK,
        memory_answer=MARK,
        zero_shot_answer=None,
    )


def publish(bank: Bank, question: str, *, subject: str | None = None, seed: int = 7) -> str:
    bank.jobs.enqueue("default", question, task="math", model_id=MODEL.id, recipe=RECIPE, subject=subject)
    lease = bank.jobs.claim("worker", lease_seconds=60)
    assert lease is not None
    state = {"state": MemoryState.ACTIVE, "reason": f"because of {MARK}"}
    made = trained(X, seed=seed)
    step, rollout = made.curve[0], made.rollouts[0]
    made = dataclasses.replace(
        made,
        curve=(dataclasses.replace(step, majority_answer=MARK),),
        rollouts=(dataclasses.replace(rollout, text=f"It is {MARK}"),),
    )
    return bank.publish(lease, made, task="math", model=MODEL, recipe=RECIPE, **state).id


def rows_with(bank: Bank, word: str) -> list[str]:
    found = []
    with bank.database.read() as session:
        for table in Base.metadata.sorted_tables:
            found += [f"{table.name}: {row}" for row in session.execute(table.select()) if word in str(row)]
    return found


def test_a_purge_leaves_a_tombstone_and_nothing_else(bank: Bank, tmp_path: Path) -> None:
    kept = publish(bank, "another question", seed=1)
    gone = publish(bank, f"What is {MARK}?")
    digest = bank.memory("default", gone).tensor_digest
    bank.record_use(use(gone))
    bank.transition("default", gone, MemoryState.RETIRED, actor="t", reason=f"too much {MARK}")
    assert len(rows_with(bank, MARK)) > 5
    steps: list[str] = []
    report = bank.purge("default", [gone], actor="t", reason="asked", observe=lambda step, _: steps.append(step))
    assert steps == ["purge.before_commit", "purge.committed", "purge.files", "purge.done"]
    assert (report.memory_ids, report.uses, report.jobs, report.exports) == ((gone,), 1, 1, ())
    left = [row for row in rows_with(bank, MARK) if kept not in row and "another question" not in row]
    assert [row for row in left if "episodes" not in row and "gated" not in row] == [], "only the other memory's"
    assert digest not in list(bank.tensors.digests("default"))
    with pytest.raises(NotFound, match=r"was purged on .* by t; it is gone"):
        bank.memory("default", gone)
    with pytest.raises(NotFound, match="was purged"):
        bank.prompt("default", gone)
    assert bank.nearest("default", KeyKind.INPUT, X, 5) == [Hit(kept, 1.0, "default")]
    (stone,) = bank.tombstones("default")
    assert (stone.memory_id, stone.actor) == (gone, "t")
    counts = bank.memory_counts()["default"]
    assert (counts[MemoryState.PURGED], counts[MemoryState.ACTIVE]) == (1, 1)
    assert chain.verify(bank.database, "default").broken is None
    assert [event.note for event in bank.events("default", gone)] == [None] * 4 + ["asked"]
    if bank.database.sqlite:
        for path in tmp_path.rglob("bank.sqlite*"):
            assert f"What is {MARK}".encode() not in path.read_bytes(), path


def test_what_is_pinned_or_unknown_is_not_purged(bank: Bank) -> None:
    first, second = publish(bank, "one", seed=1), publish(bank, "two", seed=2)
    bank.pin("default", second, True, actor="t")
    with pytest.raises(InputError, match="is pinned"):
        bank.purge("default", [first, second], actor="t", reason=None)
    with pytest.raises(NotFound):
        bank.purge("default", [first, "mem_x"], actor="t", reason=None)
    assert len(bank.memories("default")) == 2
    with pytest.raises(InputError, match="only `purge` removes for good"):
        bank.transition("default", first, MemoryState.PURGED, actor="t", reason=None)


def test_an_interrupted_purge_is_finished_by_the_next(bank: Bank) -> None:
    first, second = publish(bank, "one", seed=1), publish(bank, "two", seed=2)

    def crash(step: str, _: dict[str, object]) -> None:
        if step == "purge.committed":
            raise StorageError("crashed")

    with pytest.raises(StorageError, match="crashed"):
        bank.purge("default", [first], actor="t", reason=None, observe=crash)
    assert len(list(bank.tensors.digests("default"))) == 2
    assert bank.finish_purges("default") == 1
    assert bank.finish_purges("default") == 0
    assert list(bank.tensors.digests("default")) == [bank.memory("default", second).tensor_digest]


def test_forgetting_again_finishes_what_was_interrupted(bank: Bank) -> None:
    publish(bank, "mine", subject="Ada Lovelace")

    def crash(step: str, _: dict[str, object]) -> None:
        if step == "purge.committed":
            raise StorageError("crashed")

    with pytest.raises(StorageError, match="crashed"):
        bank.forget_subject("Ada Lovelace", actor="t", observe=crash)
    assert len(list(bank.tensors.digests("default"))) == 1
    assert bank.forget_subject("Ada Lovelace", actor="t") == []
    assert list(bank.tensors.digests("default")) == []


def test_a_purge_waits_for_who_is_about_to_use_the_memory(bank: Bank) -> None:
    """A use that is not yet committed when the purge comes to the memory goes with it."""
    memory = publish(bank, "one")
    with ThreadPoolExecutor(1) as pool:
        with bank.database.write() as session:
            session.add(UseRow(**use_values(use(memory), bank.vault)))
            session.flush()
            purging = pool.submit(bank.purge, "default", [memory], actor="t", reason=None)
            if not bank.database.sqlite:
                wait_for_a_lock(session)
        assert purging.result().uses == 1
    assert bank.uses("default") == []


def test_a_purge_takes_the_tensor_that_the_memory_has_by_now(bank: Bank) -> None:
    """A rotation of keys that is about to commit gives the memory another tensor: that one goes."""
    memory = publish(bank, "one")
    sealed_anew = bank.tensors.put("default", b"sealed anew")
    with ThreadPoolExecutor(1) as pool:
        with bank.database.write() as session:
            row = session.get_one(MemoryRow, ("default", memory), with_for_update={"key_share": True})
            row.tensor_digest = sealed_anew
            session.flush()
            purging = pool.submit(bank.purge, "default", [memory], actor="t", reason=None)
            if not bank.database.sqlite:
                wait_for_a_lock(session)
        purging.result()
    assert sealed_anew not in list(bank.tensors.digests("default"))


def wait_for_a_lock(session: Session) -> None:
    """Until another connection of the database waits for this one."""
    waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
    while not session.execute(text(waits)).scalar_one():
        time.sleep(0.02)


def test_a_tensor_that_another_memory_names_stays(bank: Bank) -> None:
    first, second = publish(bank, "one", seed=1), publish(bank, "two", seed=1)
    bank.purge("default", [first], actor="t", reason=None)
    assert bank.prompt("default", second).virtual_tokens == 2


def test_uses_of_a_shared_memory_count_for_it_and_go_with_it(bank: Bank) -> None:
    memory = publish(bank, "one")
    bank.bind("other", MODEL)
    record = use(memory, namespace="other", home="default")
    bank.record_use(record)
    assert bank.uses("other") == [record]
    assert bank.memory("default", memory).uses == 1
    (hit,) = bank.nearest("other", KeyKind.INPUT, X, 3, shared=["default"])
    assert hit == Hit(memory, 1.0, "default")
    assert bank.purge("default", [memory], actor="t", reason=None).uses == 1
    assert bank.uses("other") == []


def test_forgetting_a_subject(bank: Bank) -> None:
    other = publish(bank, "of nobody", seed=1)
    mine = publish(bank, "mine", subject="Ada Lovelace", seed=2)
    bank.pin("default", mine, True, actor="t")
    bank.record_use(use(mine))
    asked = use(other, subject="Ada Lovelace")
    bank.record_use(asked)
    bank.jobs.enqueue(
        "default", "still to learn", task="math", model_id=MODEL.id, recipe=RECIPE, subject="Ada Lovelace"
    )
    lease = bank.jobs.claim("worker", lease_seconds=60)
    assert lease is not None
    (plan,) = bank.forget_subject("Ada Lovelace", actor="t", dry_run=True)
    assert (plan.memory_ids, plan.jobs, plan.uses) == ((mine,), 2, 1)
    assert bank.memory("default", mine).pinned
    (done,) = bank.forget_subject("Ada Lovelace", actor="t")
    assert done == plan
    assert bank.forget_subject("Ada Lovelace", actor="t") == []
    assert bank.forget_subject("Ada Lovelace", namespace="default", actor="t") == []
    with pytest.raises(LeaseLost, match="it is gone"):
        bank.jobs.heartbeat(lease, lease_seconds=60)
    assert rows_with(bank, "Ada Lovelace") == []
    assert (bank.uses("default"), [memory.id for memory in bank.memories("default")]) == ([], [other])
    assert bank.events("default")[-1].kind == EventKind.ERASED
    assert chain.verify(bank.database, "default").broken is None


def test_a_bank_that_was_moved_away_forgets_nothing(bank: Bank) -> None:
    """Also in the namespaces that are still here: all of it or nothing."""
    publish(bank, "mine", subject="Ada Lovelace")
    bank.bind("a", MODEL)
    for name in ("a", "default"):
        bank.jobs.enqueue(name, "later", task="math", model_id=MODEL.id, recipe=RECIPE, subject="Ada Lovelace")
    with bank.database.write() as session:
        session.get_one(NamespaceRow, "default").moved_to = "elsewhere"
    before = rows_with(bank, "Ada Lovelace")
    for namespace in (None, "default"):
        with pytest.raises(BankMoved):
            bank.forget_subject("Ada Lovelace", namespace=namespace, actor="t")
    assert rows_with(bank, "Ada Lovelace") == before
    assert len(bank.jobs.list("a")) == 1


def test_forty_thousand_at_once(bank: Bank) -> None:
    """More than a statement takes parameters."""

    def as_sold(connection: Any, _record: object) -> None:
        if hasattr(connection, "setlimit"):  # some builds of SQLite take more
            connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 32_766)

    bank.database.engine.dispose()
    event.listen(bank.database.engine, "connect", as_sold)
    kept, gone = publish(bank, "one", seed=1), publish(bank, "two", seed=2)
    unknown = [f"mem_{n}" for n in range(40_000)]
    hits = [Hit(name, 1.0) for name in [*unknown, kept]]
    assert bank._search._usable("default", hits, None) == {kept}
    assert [hit.memory_id for hit in bank._search._measured("default", KeyKind.INPUT, X, hits)] == [kept]
    assert bank.evict("default", dict.fromkeys([*unknown, gone]), actor="t") == [gone]
    with pytest.raises(NotFound, match="mem_39999"):
        bank.purge("default", [kept, gone, unknown[-1]], actor="t", reason=None)
    assert purge._exports(bank, "default", unknown) == ()
    assert bank.purge("default", [gone], actor="t", reason=None).memory_ids == (gone,)
    pending = {"namespace": "default", "revision": 1, "actor": "t", "purged_at": utcnow(), "pending": DELETED}
    with bank.database.write() as session:
        session.execute(insert(TombstoneRow), [{**pending, "memory_id": name} for name in unknown])
    assert bank.finish_purges("default") == 40_000
    assert bank.finish_purges("default") == 0


def test_many_are_evicted_at_once(bank: Bank) -> None:
    first, second, third = (publish(bank, f"q{n}", seed=n) for n in range(3))
    bank.pin("default", second, True, actor="t")
    bank.transition("default", third, MemoryState.RETIRED, actor="t", reason=None)
    reasons = {first: "old", second: "old", third: "old", "mem_x": "old"}
    assert bank.evict("default", reasons, actor="policy:ttl") == [first]
    evicted = bank.memory("default", first)
    assert (evicted.state, evicted.reason) == (MemoryState.RETIRED, "old")
    assert evicted.state_since == evicted.updated_at > evicted.created_at


def test_an_index_that_is_not_open_here_is_named_and_cleaned_later(database: Database, tmp_path: Path) -> None:
    tensors, folder = LocalTensors(tmp_path / "tensors"), tmp_path / "chroma"
    owner = Bank(database, tensors, index="durable", durable=ChromaIndex(folder))
    owner.bind("default", MODEL)
    gone = publish(owner, "one", seed=1)
    other = Bank(database, tensors, index="durable")
    report = other.purge("default", [gone], actor="t", reason=None)
    assert len(report.left) == 1
    assert "may still hold deleted keys" in report.left[0]
    assert owner.finish_purges("default") == 1
    assert owner.finish_purges("default") == 0
    owner.close()
