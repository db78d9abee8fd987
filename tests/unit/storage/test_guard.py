"""Encryption is switched on while another process has the bank open without a key: it writes nothing more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bank_helpers import MODEL, RECIPE, learner, trained, unit
from forks import forks
from sqlalchemy import select
from test_rotation import use_of
from unheard import ask_twice
from vault_helpers import FIRST, encrypted_bank, masters, plain_bank

from elm_agent.errors import NotFound, VaultLocked
from elm_agent.records import MemoryState
from elm_agent.storage.bank import Adopted, Bank
from elm_agent.storage.queue import jobs
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import JobRow
from elm_agent.storage.upkeep import count_uses
from elm_agent.storage.vault.guard import refuse_readable
from elm_agent.storage.vault.keys import make_keys
from elm_agent.storage.vault.status import vault_status

X = unit(1, 0, 0, 0)
ASKED: dict[str, Any] = {"task": "math", "model_id": MODEL.id, "recipe": RECIPE}
SENTENCE = (
    r"namespace 'default' was encrypted after this process had opened the bank.*restart .* with \[encryption\] set"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tensors"


@pytest.fixture
def stale(database: Database, folder: Path) -> Bank:
    """A bank with one memory, opened before there were keys."""
    bank = plain_bank(database, folder)
    learner(bank)("learnt in the open", X)
    return bank


def readable(bank: Bank) -> int:
    (only,) = vault_status(bank)
    return only.readable


def test_nothing_readable_is_written_any_more(stale: Bank, database_url: str, folder: Path) -> None:
    (memory,) = stale.memories("default")
    stale.jobs.enqueue("default", "claimed", **ASKED)
    lease = stale.jobs.claim("worker", lease_seconds=600)
    assert lease is not None
    stale.jobs.enqueue("default", "queued", **ASKED)
    item = Adopted(
        question="adopted", task="math", prompt=trained(X, seed=5).prompt, keys=trained(X).keys, model=MODEL,
        recipe=RECIPE, origin="pack",
    )  # fmt: skip
    with closing(encrypted_bank(Database.open(database_url), folder)) as bank:
        before, tensors = readable(bank), sorted(stale.tensors.digests("default"))
        writes: dict[str, Callable[[], object]] = {
            "publish": lambda: stale.publish(
                lease, trained(X), task="math", model=MODEL, recipe=RECIPE, state=MemoryState.ACTIVE, reason=None
            ),
            "adopt": lambda: stale.adopt("default", [item], actor="me"),
            "enqueue": lambda: stale.jobs.enqueue("default", "my secret", **ASKED),
            "enqueue again": lambda: stale.jobs.enqueue("default", "queued", **ASKED),
            "claim": lambda: stale.jobs.claim("another", lease_seconds=60),
            "heartbeat": lambda: stale.jobs.heartbeat(lease, lease_seconds=60, progress={"answer": "my secret"}),
            "release": lambda: stale.jobs.release(lease, "my secret"),
            "fail": lambda: stale.jobs.fail(lease, "my secret", backoff_seconds=0),
            "cancelled": lambda: stale.jobs.cancelled(lease, "my secret"),
            "record_use": lambda: stale.record_use(use_of(memory.id, 1)),
            "transition": lambda: stale.transition(
                "default", memory.id, MemoryState.RETIRED, actor="me", reason="my secret"
            ),
            "evict": lambda: stale.evict("default", {memory.id: "my secret"}, actor="me"),
            "review": lambda: stale.review("default", memory.id, actor="me", verdict="good", note="my secret"),
            "purge": lambda: stale.purge("default", [memory.id], actor="me", reason="my secret"),
            "count_uses": lambda: list(
                count_uses(stale.database, "default", actor="me", vault=stale.vault, tell=lambda *_: None)
            ),
            "bind": lambda: stale.bind("default", MODEL),
        }
        for name, write in writes.items():
            with pytest.raises(VaultLocked, match=SENTENCE):
                write()
            assert readable(bank) == before, name
        with pytest.raises(VaultLocked, match="a new namespace 'fresh' would be readable"):
            stale.bind("fresh", MODEL)
        assert sorted(stale.tensors.digests("default")) == tensors
        with bank.database.read() as session:
            assert not any("my secret" in question for question in session.scalars(select(JobRow.question)))


def test_a_process_that_has_not_heard_of_the_key(stale: Bank, database_url: str, folder: Path) -> None:
    """Two processes, as it happens: one waits, the other switches encryption on, the first goes on."""
    line, its = forks().Pipe()
    process = forks().Process(target=ask_twice, args=(database_url, folder, its))
    process.start()
    its.close()
    assert line.recv() == "queued"
    bank = encrypted_bank(stale.database, folder)
    line.send("go on")
    assert "restart the process with [encryption] set" in line.recv()
    line.send("that is all")
    process.join(120)
    assert process.exitcode == 0
    assert {job.question for job in bank.jobs.list("default")} == {"learnt in the open", "before"}


def test_of_two_at_once_the_later_one_sees_the_other(
    database: Database, database_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are made while a job is being queued: they wait for it, and know that not all there is sealed."""
    stale, other = plain_bank(database, folder), Database.open(database_url)
    maker = threading.Thread(target=make_keys, args=(other, "default", masters(FIRST)))

    def meanwhile(*args: Any) -> None:
        refuse_readable(*args)
        maker.start()
        maker.join(0.5)
        assert maker.is_alive(), "who makes keys waits for who writes"

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "refuse_readable", meanwhile)
        stale.jobs.enqueue("default", "in the open", **ASKED)
    maker.join(30)
    with pytest.raises(VaultLocked, match=SENTENCE):
        stale.jobs.enqueue("default", "too late", **ASKED)
    (only,) = vault_status(encrypted_bank(other, folder))
    assert (only.version, only.sealed, only.readable) == (1, False, 1)
    other.close()


def test_a_use_needs_a_namespace_that_is_bound(stale: Bank) -> None:
    (memory,) = stale.memories("default")
    use = replace(use_of(memory.id, 1), namespace="nowhere", memory_namespace="default")
    shared = Bank(stale.database, stale.tensors, index="exact", shared=["default"])
    with pytest.raises(NotFound, match="namespace 'nowhere' is not in this bank: bind it"):
        shared.record_use(use)
    shared.bind("nowhere", MODEL)
    shared.record_use(use)
    assert [use.namespace for use in shared.uses("nowhere")] == ["nowhere"]
