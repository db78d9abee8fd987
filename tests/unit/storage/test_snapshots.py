"""Snapshots of the exact index: used when right, made anew when not, gone when something is purged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bank_helpers import MODEL, Learn, learner, unit
from sqlalchemy import text

from elm_agent.records import KeyKind, MemoryState
from elm_agent.storage.bank import Bank
from elm_agent.storage.indexes import feed_exact
from elm_agent.storage.indexes import snapshots as snapshot_files
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.indexes.snapshots import Mark, Snapshots, folder_name
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.testing.conformance import entries, unit_vectors

INPUT = KeyKind.INPUT
X, Y = unit(1, 0, 0, 0), unit(0, 1, 0, 0)
Open = Callable[[], Bank]


@pytest.fixture
def reopened(database_url: str, tmp_path: Path) -> Iterator[Open]:
    """Opens the bank as another process would, with snapshots after every change."""
    banks: list[Bank] = []

    def reopen() -> Bank:
        exact = ExactIndex(tmp_path / "index", keep_above=0)
        banks.append(Bank(Database.open(database_url), LocalTensors(tmp_path / "t"), index="exact", exact=exact))
        banks[-1].bind("default", MODEL)
        return banks[-1]

    yield reopen
    for bank in banks:
        bank.close()


def found(bank: Bank, query: np.ndarray = X, k: int = 9) -> list[str]:
    return [hit.memory_id for hit in bank.nearest("default", INPUT, query, k)]


def snapshots(folder: Path) -> list[Path]:
    return sorted((folder / "index" / folder_name("default") / "input").glob("*-*"))


def made(folder: Path, count: int = 5) -> tuple[Snapshots, list[np.ndarray]]:
    store, vectors = Snapshots(folder), unit_vectors(count, width=8)
    rows = [np.stack(vectors)]
    written = store.write("a", INPUT, Mark(7, "o"), [f"m{n}" for n in range(count)], rows, 8, lambda: True)
    assert written is not None
    return store, vectors


def test_what_was_written_is_mapped(tmp_path: Path) -> None:
    store, vectors = made(tmp_path)
    snapshot = store.newest("a", INPUT, lambda mark: mark == Mark(7, "o"))
    assert snapshot is not None
    assert isinstance(snapshot.keys, np.memmap)
    assert snapshot.ids == ["m0", "m1", "m2", "m3", "m4"]
    np.testing.assert_array_equal(snapshot.keys, np.stack(vectors))
    assert store.newest("a", INPUT, lambda _: False) is None
    assert store.newest("A", INPUT, lambda _: True) is None


def test_a_younger_snapshot_takes_the_place_of_the_older(tmp_path: Path) -> None:
    store, vectors = made(tmp_path)
    (tmp_path / folder_name("a") / "input" / ".left-by-a-kill").mkdir()
    old = store.newest("a", INPUT, lambda _: True)
    assert store.write("a", INPUT, Mark(8, "o"), ["z"], [vectors[0][None]], 8, lambda: True) is not None
    assert store.write("a", INPUT, Mark(9, "o"), ["y"], [vectors[0][None]], 8, lambda: False) is None
    assert [path.name[:20] for path in (tmp_path / folder_name("a") / "input").iterdir()] == [f"{8:020d}"]
    assert old is not None
    np.testing.assert_array_equal(old.keys, np.stack(vectors))  # who maps the old one keeps it


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_found(tmp_path: Path, seed: int) -> None:
    """A flipped bit or a truncation, anywhere: nothing is ever returned that was not written."""
    store, _ = made(tmp_path)
    chance = random.Random(seed)
    (folder,) = (tmp_path / folder_name("a") / "input").iterdir()
    file = folder / chance.choice(["keys.npy", "about.json"])
    data = bytearray(file.read_bytes())
    if seed % 4:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    else:
        del data[chance.randrange(len(data)) :]
    file.write_bytes(data)
    snapshot = store.newest("a", INPUT, lambda mark: mark == Mark(7, "o"))
    if snapshot is not None:  # a bit of the padding in the header of an .npy file says nothing
        assert snapshot.ids == [f"m{n}" for n in range(5)]
        np.testing.assert_array_equal(snapshot.keys, np.stack(unit_vectors(5, width=8)))
    else:
        assert not folder.exists(), "what is damaged is deleted"


@pytest.mark.parametrize("about", ["[]", "null", "{}", '{"ids": 3, "crc32": 1}', "[" * 100_000])
def test_nonsense_is_no_snapshot(tmp_path: Path, about: str) -> None:
    store, _ = made(tmp_path)
    (folder,) = (tmp_path / folder_name("a") / "input").iterdir()
    (folder / "about.json").write_text(about)
    assert store.newest("a", INPUT, lambda _: True) is None


def test_namespaces_never_become_paths(tmp_path: Path) -> None:
    store = Snapshots(tmp_path / "index")
    for name in ("../../x", "/etc/passwd", "a\x00b", ".", "..", "CON", "x" * 10_000, "\u202ea"):
        assert store.write(name, INPUT, Mark(1, "o"), ["m"], [X[None]], 4, lambda: True) is not None
        assert store.newest(name, INPUT, lambda _: True) is not None
    assert {path.name for path in tmp_path.iterdir()} == {"index"}
    assert len(list((tmp_path / "index").iterdir())) == 8


def test_a_bank_opens_from_its_snapshot(reopened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = reopened()
    learn = learner(bank)
    first, second = learn("a", X), learn("b", Y)
    assert found(bank) == [first.id, second.id]
    assert len(snapshots(tmp_path)) == 1
    bank.transition("default", first.id, MemoryState.RETIRED, actor="t", reason=None)
    third = learn("c", unit(1, 1, 0, 0))
    monkeypatch.setattr("elm_agent.storage.indexes.feed_exact.active_keys", None)  # must not be needed
    assert found(reopened()) == [third.id, second.id]


def test_questions_by_both_kinds_of_key_load_each_once(reopened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = reopened()
    learn = learner(bank)
    memories = [learn("a", X, kv=unit(1, 0)).id, learn("b", Y, kv=unit(0, 1)).id]
    loaded: list[KeyKind] = []
    keys = feed_exact.active_keys

    def counted(database: Database, namespace: str, kind: KeyKind) -> Any:
        loaded.append(kind)
        return keys(database, namespace, kind)

    monkeypatch.setattr(feed_exact, "active_keys", counted)
    for asked in (bank, reopened()):
        for _ in range(3):
            assert found(asked) == memories
            assert [hit.memory_id for hit in asked.nearest("default", KeyKind.KV, unit(1, 0), 9)] == memories
    assert loaded == [KeyKind.INPUT, KeyKind.KV]


def test_a_snapshot_of_another_history_is_not_trusted(reopened: Open, tmp_path: Path) -> None:
    bank = reopened()
    memory = learner(bank)("a", X)
    assert found(bank) == [memory.id]
    (folder,) = snapshots(tmp_path)
    store = Snapshots(tmp_path / "index")
    revision = int(folder.name[:20])
    store.write("default", INPUT, Mark(revision, "sha256:other"), ["mem_ghost"], [Y[None]], 4, lambda: True)
    assert found(reopened(), Y) == [memory.id]


def test_a_snapshot_from_before_the_outbox_floor_is_not_trusted(reopened: Open) -> None:
    bank = reopened()
    learn = learner(bank)
    first = learn("a", X)
    assert found(bank) == [first.id]
    second = learn("b", Y)
    with bank.database.write() as session:
        session.execute(text("DELETE FROM outbox"))
        session.execute(text("UPDATE namespaces SET outbox_floor = revision"))
    assert sorted(found(bank)) == sorted(found(reopened())) == sorted([first.id, second.id])


def test_nobody_waits_while_a_snapshot_is_read(
    reopened: Open, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = reopened()
    first = learner(bank)("a", X)
    assert found(bank) == [first.id]
    impatient = Database.open(database_url, busy_seconds=0.5)
    read = snapshot_files._read
    steps: list[str] = []

    def write_meanwhile(folder: Path, *rest: Any) -> Any:
        steps.append("began")
        with impatient.write() as session:
            session.execute(text("UPDATE memories SET task = 'written'"))
        steps.append("written")
        return read(folder, *rest)

    monkeypatch.setattr(snapshot_files, "_read", write_meanwhile)
    assert found(reopened()) == [first.id]
    assert steps == ["began", "written"]
    impatient.close()


def test_an_outbox_that_is_pruned_while_a_snapshot_is_read(reopened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = reopened()
    learn = learner(bank)
    first = learn("a", X)
    assert found(bank) == [first.id]
    second = learn("b", Y)
    read = snapshot_files._read

    def prune_meanwhile(folder: Path, *rest: Any) -> Any:
        with bank.database.write() as session:
            session.execute(text("DELETE FROM outbox"))
            session.execute(text("UPDATE namespaces SET outbox_floor = revision"))
        return read(folder, *rest)

    monkeypatch.setattr(snapshot_files, "_read", prune_meanwhile)
    assert found(reopened()) == [first.id, second.id]


def test_what_is_purged_leaves_every_snapshot(reopened: Open, tmp_path: Path) -> None:
    """Also one that another process, which purged nothing, would have gone on to use."""
    bank, other = reopened(), reopened()
    learn: Learn = learner(bank)
    secret, kept = learn("secret", unit(3, 1, 4, 1)), learn("kept", Y)
    trace = unit(3, 1, 4, 1).tobytes()
    assert len(found(bank)) == len(found(other)) == 2
    assert any(trace in path.read_bytes() for path in (tmp_path / "index").rglob("*.npy"))
    bank.purge("default", [secret.id], actor="t", reason=None)
    assert not any(trace in path.read_bytes() for path in (tmp_path / "index").rglob("*.npy"))
    assert found(bank) == found(other) == [kept.id]
    assert not any(trace in path.read_bytes() for path in (tmp_path / "index").rglob("*.npy"))
    for path in (tmp_path / "index").rglob("about.json"):
        assert secret.id not in json.loads(path.read_text())["ids"]


def test_a_process_that_slept_through_a_purge_removes_its_own_snapshot(
    database_url: str, reopened: Open, tmp_path: Path
) -> None:
    """As on another machine: its files are its own."""
    bank = reopened()
    far = Bank(
        Database.open(database_url),
        LocalTensors(tmp_path / "t"),
        index="exact",
        exact=(exact := ExactIndex(tmp_path / "far", keep_above=0)),
    )
    learn = learner(bank)
    secret, kept = learn("secret", unit(3, 1, 4, 1)), learn("kept", Y)
    trace = unit(3, 1, 4, 1).tobytes()
    assert len(found(far)) == 2
    exact.keep_above = 1000  # so that no new snapshot is due that would take the place of the old one
    bank.purge("default", [secret.id], actor="t", reason=None)
    assert any(trace in path.read_bytes() for path in (tmp_path / "far").rglob("*.npy"))
    assert found(far) == [kept.id]
    assert not any(trace in path.read_bytes() for path in (tmp_path / "far").rglob("*.npy"))
    far.close()


def test_results_are_those_of_a_scan_in_memory(tmp_path: Path) -> None:
    """Base, crossed out rows and later rows together, ties included."""
    chance = np.random.default_rng(0)
    mapped, plain = ExactIndex(tmp_path / "index"), ExactIndex()
    vectors = unit_vectors(60, width=6)
    for turn in range(30):
        some = [int(n) for n in chance.integers(0, 60, 20)]
        put = entries([f"m{n:02}" for n in some], [vectors[n // 2 * 2] for n in some])  # pairs of equal keys
        gone = [f"m{n:02}" for n in chance.integers(0, 60, 6)]
        for index in (mapped, plain):
            index.apply("a", INPUT, put, gone)
        if turn % 4 == 0:
            mapped.keep("a", INPUT, Mark(turn, "o"), lambda: True)
        for query in unit_vectors(3, width=6, seed=turn):
            for k in (1, 7, 100):
                assert mapped.search("a", INPUT, query, k) == plain.search("a", INPUT, query, k)
        assert mapped.ids("a", INPUT) == plain.ids("a", INPUT)
