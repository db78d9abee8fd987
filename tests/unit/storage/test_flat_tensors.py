"""A bank of the old layout, tensors right under ``<directory>/ab``, becomes one of today."""

import os
import shutil
import time
from pathlib import Path

import pytest
from bank_helpers import MODEL, Learn, learner, unit
from forks import forks

from elm_agent import Settings, open_bank
from elm_agent.errors import StorageError
from elm_agent.records import MemoryRecord
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.flat import adopt_flat_tensors
from elm_agent.storage.tensors.local import LocalTensors


@pytest.fixture
def old(bank: Bank, learn: Learn, tmp_path: Path) -> list[MemoryRecord]:
    """Three memories in two namespaces, one tensor in both, in the old layout, with what a crash left there."""
    bank.bind("Other", MODEL)
    memories = [learn("one", unit(1, 0, 0, 0)), learn("two", unit(0, 1, 0, 0))]
    memories.append(learner(bank)("one", unit(1, 0, 0, 0), namespace="Other"))
    assert memories[0].tensor_digest == memories[2].tensor_digest
    directory = tmp_path / "tensors"
    for memory in memories:
        name = memory.tensor_digest.removeprefix("sha256:")
        flat = directory / name[:2] / f"{name}.safetensors"
        flat.parent.mkdir(exist_ok=True)
        shutil.copy2(bank.tensors.path(memory.namespace, memory.tensor_digest), flat)  # type: ignore[attr-defined]
    for namespace in ("default", "+other"):
        shutil.rmtree(directory / namespace)
    return memories


def flat_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("[0-9a-f][0-9a-f]/*.safetensors"))


def check(bank: Bank, memories: list[MemoryRecord]) -> None:
    for memory in memories:
        assert bank.prompt(memory.namespace, memory.id).virtual_tokens == 2
    assert examine(bank).clean


def test_every_namespace_gets_its_own_copy(bank: Bank, old: list[MemoryRecord], tmp_path: Path) -> None:
    assert isinstance(bank.tensors, LocalTensors)
    assert adopt_flat_tensors(bank.database, bank.tensors) == 2
    assert flat_files(tmp_path / "tensors") == []
    check(bank, old)
    assert bank.tensors.namespaces() == ["Other", "default"]
    assert adopt_flat_tensors(bank.database, bank.tensors) == 0
    one, other = old[0], old[2]
    inodes = {bank.tensors.path(memory.namespace, memory.tensor_digest).stat().st_ino for memory in (one, other)}
    assert len(inodes) == 2, "damage to one must not reach the other"


def test_the_age_stays(bank: Bank, old: list[MemoryRecord], tmp_path: Path) -> None:
    assert isinstance(bank.tensors, LocalTensors)
    for path in flat_files(tmp_path / "tensors"):
        os.utime(path, (time.time(), time.time() - 7200))
    adopt_flat_tensors(bank.database, bank.tensors)
    assert bank.tensors.age("default", old[0].tensor_digest) > 7000


def test_a_file_that_no_memory_names_waits_for_the_doctor(
    bank: Bank, old: list[MemoryRecord], tmp_path: Path
) -> None:
    assert isinstance(bank.tensors, LocalTensors)
    young, aged = (tmp_path / "tensors" / (letter * 2) / f"{letter * 64}.safetensors" for letter in "cd")
    for path in (young, aged):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"an orphan")
    os.utime(aged, (time.time(), time.time() - 7200))
    adopt_flat_tensors(bank.database, bank.tensors)
    assert flat_files(tmp_path / "tensors") == [young], "it may be part of a publication"
    (left,) = bank.tensors.temporary(3600)
    assert left == f"dd/{'d' * 64}.unnamed.part"
    assert [finding.subject for finding in examine(bank, repair=True).findings] == [left]
    assert len(old) == 3


def test_a_crash_at_any_point_is_finished_by_the_next_opening(bank: Bank, old: list[MemoryRecord]) -> None:
    assert isinstance(bank.tensors, LocalTensors)
    for call in ("shutil.copy2", "os.fsync", "os.replace", "pathlib.Path.unlink"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(call, interrupt)
            with pytest.raises(KeyboardInterrupt):
                adopt_flat_tensors(bank.database, bank.tensors)
    adopt_flat_tensors(bank.database, bank.tensors)
    check(bank, old)
    bank.tensors.sweep(-1)
    check(bank, old)


def interrupt(*_args: object, **_more: object) -> None:
    raise KeyboardInterrupt


def test_concurrent_openers(bank: Bank, old: list[MemoryRecord], database_url: str, tmp_path: Path) -> None:
    openers = [forks().Process(target=_open, args=(database_url, tmp_path)) for _ in range(3)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join(120)
    assert [opener.exitcode for opener in openers] == [0, 0, 0]
    assert flat_files(tmp_path / "tensors") == []
    check(bank, old)


def _open(url: str, home: Path) -> None:
    open_bank(Settings(home=home, database_url=url, index="exact")).close()


def test_a_damaged_copy_of_a_crash_is_replaced(bank: Bank, old: list[MemoryRecord]) -> None:
    assert isinstance(bank.tensors, LocalTensors)
    path = bank.tensors.path("default", old[0].tensor_digest)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    adopt_flat_tensors(bank.database, bank.tensors)
    check(bank, old)


def test_a_disk_that_refuses_is_one_sentence(
    database: Database, bank: Bank, old: list[MemoryRecord], tmp_path: Path
) -> None:
    (tmp_path / "tensors" / "default").write_text("in the way")
    with pytest.raises(StorageError, match="the tensors of an older bank could not be moved") as caught:
        adopt_flat_tensors(database, LocalTensors(tmp_path / "tensors"))
    assert "\n" not in str(caught.value)
    assert len(flat_files(tmp_path / "tensors")) >= 1
    (tmp_path / "tensors" / "default").unlink()
    assert isinstance(bank.tensors, LocalTensors)
    adopt_flat_tensors(database, bank.tensors)
    check(bank, old)
