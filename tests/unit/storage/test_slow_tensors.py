"""A tensor store that takes its time: nobody else waits for it, and bytes that come back are not lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bank_helpers import MODEL, RECIPE, trained, unit
from sqlalchemy import update
from vault_helpers import FIRST, masters

from elm_agent.errors import StoreBusy, TensorMissing
from elm_agent.records import EventKind, MemoryRecord, MemoryState
from elm_agent.storage import keeping
from elm_agent.storage.bank import Adopted, Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import NamespaceRow
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.storage.tensors.remote import FsspecTensors
from elm_agent.storage.vault.encrypted import EncryptedVault

X = unit(1, 0, 0, 0)
PATIENCE = 20.0  # seconds


class SlowTensors(LocalTensors):
    """Whoever calls ``slow``, a method, first says so and then waits until it may go on."""

    slow = ""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.reached, self.go_on = threading.Event(), threading.Event()

    def _wait(self, method: str) -> None:
        if method == self.slow:
            self.reached.set()
            assert self.go_on.wait(PATIENCE)

    def put(self, *args: Any, **options: Any) -> str:
        self._wait("put")
        return super().put(*args, **options)

    def delete(self, *args: Any, **options: Any) -> bool:
        self._wait("delete")
        return super().delete(*args, **options)

    def age(self, *args: Any, **options: Any) -> float:
        self._wait("age")
        return super().age(*args, **options)


@pytest.fixture
def tensors(tmp_path: Path) -> SlowTensors:
    return SlowTensors(tmp_path / "tensors")


@pytest.fixture
def bank(database: Database, tensors: SlowTensors) -> Bank:
    bank = Bank(database, tensors, index="exact")
    bank.bind("default", MODEL)
    return bank


@pytest.fixture
def other(database_url: str, tmp_path: Path) -> Iterator[Bank]:
    """As another process has it; it does not wait long for anybody."""
    bank = Bank(Database.open(database_url, busy_seconds=2), LocalTensors(tmp_path / "tensors"), index="exact")
    yield bank
    bank.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def publish(bank: Bank, question: str, *, seed: int = 1, observe: Any = None) -> MemoryRecord:
    bank.jobs.enqueue("default", question, task="math", model_id=MODEL.id, recipe=RECIPE)
    lease = bank.jobs.claim("worker", lease_seconds=60)
    assert lease is not None
    options: dict[str, Any] = {"task": "math", "model": MODEL, "recipe": RECIPE, "state": MemoryState.ACTIVE}
    return bank.publish(lease, trained(X, seed=seed), **options, reason=None, observe=observe)


def item(seed: int = 1) -> Adopted:
    made = trained(X, seed=seed)
    return Adopted(
        question=f"question {seed}", task="math", prompt=made.prompt, keys=made.keys, model=MODEL, recipe=RECIPE,
        origin="test",
    )  # fmt: skip


def adopt(bank: Bank, *seeds: int, observe: Any = None) -> list[tuple[str, bool]]:
    return bank.adopt("default", [item(seed) for seed in seeds], actor="t", observe=observe)


def check_whole(bank: Bank, count: int) -> None:
    memories = bank.memories("default")
    assert len(memories) == count
    for memory in memories:
        assert bank.prompt("default", memory.id).virtual_tokens == 2
    assert examine(bank).clean


def purge(bank: Bank, memory_id: str, observe: Any = None) -> None:
    bank.purge("default", [memory_id], actor="t", reason=None, observe=observe)


WORK: dict[str, tuple[str, Callable[[Bank, str], object]]] = {
    "purge, delete": ("delete", lambda bank, memory_id: purge(bank, memory_id)),
    "publish, put": ("put", lambda bank, _: publish(bank, "two", seed=2)),
    "publish, age": ("age", lambda bank, _: publish(bank, "two", seed=2)),
    "adopt, put": ("put", lambda bank, _: adopt(bank, 2, 3)),
    "adopt, age": ("age", lambda bank, _: adopt(bank, 2, 3)),
}


@pytest.mark.parametrize("name", WORK)
def test_another_writer_commits_meanwhile(
    bank: Bank, tensors: SlowTensors, other: Bank, pool: ThreadPoolExecutor, name: str
) -> None:
    first = publish(bank, "one").id
    tensors.slow, work = WORK[name]
    working: Future[object] = pool.submit(work, bank, first)
    while not (tensors.reached.wait(0.02) or working.done()):
        pass
    try:
        other.note_event("default", EventKind.REVIEWED, actor="t", detail={})
        other.jobs.enqueue("default", "meanwhile", task="math", model_id=MODEL.id, recipe=RECIPE)
    finally:
        tensors.go_on.set()
    working.result()
    assert EventKind.REVIEWED in {event.kind for event in bank.events("default")}


@pytest.mark.parametrize("again", [publish, adopt], ids=["published", "imported"])
def test_what_is_stored_again_while_it_is_deleted_stays(
    bank: Bank, tensors: SlowTensors, other: Bank, pool: ThreadPoolExecutor, again: Any
) -> None:
    """The deletion hangs from before the bytes come back until after their row is there."""
    first = publish(bank, "one").id
    tensors.slow = "delete"
    purging = pool.submit(purge, bank, first)
    assert tensors.reached.wait(PATIENCE)
    again(other, *([1] if again is adopt else ["one again"]))
    tensors.go_on.set()
    purging.result()
    check_whole(bank, 1)


@pytest.mark.parametrize("again", [publish, adopt], ids=["published", "imported"])
@pytest.mark.parametrize("crash", [None, "purge.committed", "purge.files"])
def test_what_is_purged_between_its_storing_and_its_row_is_stored_again(
    bank: Bank, again: Any, crash: str | None
) -> None:
    first, heard = publish(bank, "one").id, []

    def stop(step: str, _: dict[str, Any]) -> None:
        if step == crash:
            raise KeyboardInterrupt

    def observe(step: str, _: dict[str, Any]) -> None:
        heard.append(step)
        if step == "tensor.durable" and heard.count(step) == 1:  # only ``publish`` tells it
            _stopped(lambda: purge(bank, first, stop), crash)

    if again is adopt:
        known = publish(bank, "two", seed=2).id  # the import finds it known, and then it goes

        def observe(step: str, _: dict[str, Any]) -> None:
            heard.append(step)
            if step == "adopt.tensors" and heard.count(step) == 1:
                _stopped(lambda: purge(bank, known, stop), crash)

        assert [new for _, new in adopt(bank, 2, observe=observe)] == [True]
        assert heard.count("adopt.tensors") == 2
        check_whole(bank, 2)
    else:
        publish(bank, "one again", observe=observe)
        assert heard.count("tensor.durable") == 2
        check_whole(bank, 1)
    bank.finish_purges("default")
    assert bank.finish_purges("default") == 0
    check_whole(bank, 2 if again is adopt else 1)


def _stopped(work: Callable[[], None], crash: str | None) -> None:
    if crash is None:
        work()
    else:
        with pytest.raises(KeyboardInterrupt):
            work()


def test_a_purge_that_was_killed_long_ago_does_not_take_what_was_stored_since(bank: Bank) -> None:
    first = publish(bank, "one")

    def stop(step: str, _: dict[str, Any]) -> None:
        if step == "purge.committed":
            raise KeyboardInterrupt

    _stopped(lambda: purge(bank, first.id, stop), "purge.committed")
    during = []
    publish(
        bank,
        "again",
        observe=lambda step, _: during.append(bank.finish_purges("default")) if step == "tensor.durable" else None,
    )
    assert during == [1], "its indexes were still to be cleaned"
    check_whole(bank, 1)


def test_it_gives_up_when_the_same_goes_again_and_again(bank: Bank) -> None:
    publish(bank, "one")

    def observe(step: str, _: dict[str, Any]) -> None:
        if step == "tensor.durable":
            purge(bank, bank.memories("default")[0].id)
            adopt(bank, 1)

    with pytest.raises(StoreBusy, match="again and again"):
        publish(bank, "again", observe=observe)
    check_whole(bank, 1)


def test_what_lay_unnamed_for_long_is_stored_again(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor collects after an hour what no memory names: who was held up for so long begins anew."""
    heard = []

    def observe(step: str, _: dict[str, Any]) -> None:
        heard.append(step)
        if heard.count("tensor.durable") == 2:
            monkeypatch.undo()

    monkeypatch.setattr(keeping, "_WITHIN", keeping._WITHIN * -1)
    publish(bank, "one", observe=observe)
    assert heard.count("tensor.durable") == 2
    check_whole(bank, 1)


def test_a_purge_does_not_delete_what_a_moved_bank_may_name_elsewhere(bank: Bank, database: Database) -> None:
    """Both places may use one store of tensors."""
    first = publish(bank, "one")

    def move_away(step: str, _: dict[str, Any]) -> None:
        if step == "purge.committed":
            with database.write() as session:
                session.execute(update(NamespaceRow).values(moved_to="elsewhere"))
            raise KeyboardInterrupt

    _stopped(lambda: purge(bank, first.id, move_away), "purge.committed")
    with database.read() as session:
        stones = keeping.unfinished(session, "default")
    keeping.delete_purged(database, bank.tensors, "default", stones)
    assert bank.tensors.age("default", first.tensor_digest) >= 0


def test_an_object_store_asks_at_the_last_moment(tmp_path: Path) -> None:
    store = FsspecTensors(f"memory://{tmp_path.name}")
    digest = store.put("default", b"bytes")
    marks: list[list[str]] = []

    def stays() -> bool:
        marks.append(store.temporary(-1))
        return len(marks) == 1

    assert store.delete("default", digest, unless=stays) is False
    assert store.get("default", digest) == b"bytes"
    assert store.delete("default", digest, unless=stays) is True
    assert [len(found) for found in marks] == [1, 1], "the mark was there when it was asked"
    assert store.temporary(-1) == []
    with pytest.raises(TensorMissing):
        store.get("default", digest)


def test_a_second_copy_of_one_prompt_is_stored_once(database: Database, tensors: SlowTensors) -> None:
    """Sealed, the same bytes would be two tensors."""
    vault = EncryptedVault(database, masters(FIRST))
    bank = Bank(database, tensors, index="exact", vault=vault)
    bank.bind("default", MODEL)
    (first, new), (second, again) = adopt(bank, 1, 1)
    assert (first, new, again) == (second, True, False)
    assert list(tensors.digests("default")) == [bank.memory("default", first).tensor_digest]
