"""Disks that are full, read-only or that changed what they were given."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from dying_worker import make_worker
from filelock import FileLock
from small_disks import fill, remount_read_only, small_disk
from sqlalchemy import update

from elm_agent.errors import StorageError, StoreBusy, TensorCorrupt, TensorMissing
from elm_agent.records import JobRecord, JobState, Recipe
from elm_agent.softprompt import to_bytes
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import JobRow, MemoryRow
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.testing.doubles import fake_fingerprint

MODEL = fake_fingerprint()
RECIPE = Recipe(virtual_tokens=3, rollouts=2, steps=1)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", kib=256) as folder:
        yield folder


def test_a_full_disk_is_one_sentence_and_leaves_nothing(disk: Path) -> None:
    store = LocalTensors(disk)
    kept = store.put("default", b"k" * 1000)
    with pytest.raises(StorageError) as caught:
        store.put("default", b"x" * 1_000_000)
    assert str(caught.value) == (
        f"a tensor of 1000000 bytes could not be stored: the disk of {disk} is full; "
        "free some space and run the same command again"
    )
    assert store.temporary(-1) == []
    assert list(store.digests("default")) == [kept]
    assert store.get("default", kept) == b"k" * 1000
    assert store.get("default", store.put("default", b"y" * 100_000)) == b"y" * 100_000, (
        "what was half written gave its space back"
    )


def test_a_disk_that_became_read_only_can_be_read(disk: Path) -> None:
    store = LocalTensors(disk)
    kept = store.put("default", b"kept")
    remount_read_only(disk)
    with pytest.raises(StorageError, match=r"could not be stored: .* is not accessible \(Read-only file system\)"):
        store.put("default", b"more")
    with pytest.raises(StorageError, match="could not be deleted"):
        store.delete("default", kept)
    assert store.get("default", kept) == b"kept"
    assert list(store.digests("default")) == [kept]


def test_a_folder_without_permission_is_one_sentence() -> None:
    with tempfile.TemporaryDirectory() as name, ordinary_user():  # pytest's own folders are closed to others
        folder = Path(name)
        with pytest.raises(StorageError, match=r"is not accessible \(Permission denied\)"):
            LocalTensors(folder / "locked").put("default", b"data")


def test_a_folder_that_another_process_holds_is_one_sentence(tmp_path: Path) -> None:
    store = LocalTensors(tmp_path / "tensors", busy_seconds=0.2)
    kept = store.put("default", b"kept")
    with FileLock(tmp_path / "tensors" / ".lock"):
        for ask in (lambda: store.put("default", b"more"), lambda: store.delete("default", kept)):
            with pytest.raises(
                StoreBusy, match=r"another process has held .*\.lock for 0\.2 s; wait for it or end it"
            ):
                ask()
        assert store.get("default", kept) == b"kept", "reading needs no lock"
    assert store.temporary(-1) == []
    assert list(store.digests("default")) == [kept]


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may write everywhere; be nobody for a while."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user than the owner of the folder")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# --- what the whole bank makes of it ----------------------------------------------------------------------


@contextmanager
def bank_with_tensors_in(folder: Path, database: Path) -> Iterator[Bank]:
    bank = Bank(Database.open(f"sqlite:///{database}"), LocalTensors(folder))
    bank.bind("default", MODEL)
    yield bank
    bank.close()


def queue(bank: Bank, question: str) -> JobRecord:
    return bank.jobs.enqueue("default", question, task="math", model_id=MODEL.id, recipe=RECIPE)[0]


def run_once(bank: Bank) -> None:
    with bank.database.write() as session:  # the pause before another attempt is over
        session.execute(update(JobRow).values(run_after=JobRow.created_at))
    make_worker(bank).run(once=True)


def test_learning_on_a_full_disk_waits_for_space(disk: Path, tmp_path: Path) -> None:
    with bank_with_tensors_in(disk, tmp_path / "bank.sqlite") as bank:
        job = queue(bank, "What is 7 times 8?")
        filler = fill(disk)
        run_once(bank)
        waiting = bank.jobs.get(job.namespace, job.id)
        assert waiting.state is JobState.QUEUED
        assert "is full; free some space" in (waiting.reason or "")
        assert bank.memories("default") == []
        assert examine(bank).clean
        filler.unlink()
        run_once(bank)
        assert bank.jobs.get(job.namespace, job.id).state is JobState.DONE
        (memory,) = bank.memories("default")
        assert bank.prompt("default", memory.id).virtual_tokens == 3


def test_a_bank_on_a_disk_that_became_read_only_still_serves(disk: Path, tmp_path: Path) -> None:
    with bank_with_tensors_in(disk, tmp_path / "bank.sqlite") as bank:
        queue(bank, "one")
        run_once(bank)
        remount_read_only(disk)
        job = queue(bank, "two")
        run_once(bank)
        assert "Read-only file system" in (bank.jobs.get(job.namespace, job.id).reason or "")
        (memory,) = bank.memories("default")
        assert bank.prompt("default", memory.id).virtual_tokens == 3
        assert examine(bank).clean


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (lambda data: data[:-4], TensorCorrupt, "was altered"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), TensorCorrupt, "was altered"),
        (lambda _data: b"", TensorCorrupt, "was altered"),
        (lambda _data: to_bytes(torch.zeros(3, 16)), TensorCorrupt, "was altered"),
        (lambda _data: None, TensorMissing, "run `elm-agent doctor --repair`"),
    ],
    ids=["truncated", "one bit", "empty", "another", "gone"],
)
def test_a_damaged_tensor_is_never_served(
    tmp_path: Path, damage: Callable[[bytes], bytes | None], error: type[StorageError], says: str
) -> None:
    with bank_with_tensors_in(tmp_path / "tensors", tmp_path / "bank.sqlite") as bank:
        queue(bank, "one")
        run_once(bank)
        (memory,) = bank.memories("default")
        (file,) = (tmp_path / "tensors").glob("default/??/*.safetensors")
        data = damage(file.read_bytes())
        file.unlink() if data is None else file.write_bytes(data)
        with pytest.raises(error, match=says) as caught:
            bank.prompt("default", memory.id)
        assert "\n" not in str(caught.value)


def test_a_tensor_of_another_shape_than_its_record_is_never_served(tmp_path: Path) -> None:
    with bank_with_tensors_in(tmp_path / "tensors", tmp_path / "bank.sqlite") as bank:
        queue(bank, "one")
        run_once(bank)
        (memory,) = bank.memories("default")
        digest = bank.tensors.put("default", to_bytes(torch.zeros(4, 16)))
        with bank.database.write() as session:
            session.execute(update(MemoryRow).values(tensor_digest=digest))
        with pytest.raises(TensorCorrupt, match=r"expected a prompt of shape \(3, 16\); got \(4, 16\)"):
            bank.prompt("default", memory.id)
