"""Feeding a durable index: complete, in order, repeatable, and never trusted with what is not in SQL."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from bank_helpers import MODEL, learner, unit

from elm_agent.errors import IndexUnavailable, StoreBusy
from elm_agent.protocols import IndexEntry
from elm_agent.records import Hit, KeyKind, MemoryState, Vector
from elm_agent.storage import search, upkeep
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.indexes import feed
from elm_agent.storage.indexes.chroma import ChromaIndex
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors

X, Y = unit(1, 0, 0, 0), unit(0, 1, 0, 0)


class Durable(ExactIndex):
    """The durable index's contract, in memory, with a switch that turns it off."""

    name = "durable"
    width_limit: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.rebuilt = True
        self.fed = self.searched = 0

    def acknowledge_rebuild(self) -> None:
        self.rebuilt = False

    def apply(self, namespace: str, kind: KeyKind, upsert: Iterable[IndexEntry], delete: Iterable[str]) -> None:
        self._check()
        super().apply(namespace, kind, upsert, delete)
        self.fed += 1

    def search(self, namespace: str, kind: KeyKind, query: Vector, k: int) -> list[Hit]:
        self._check()
        self.searched += 1
        return super().search(namespace, kind, query, k)

    def _check(self) -> None:
        if self.down:
            raise IndexUnavailable("the index is down")


@pytest.fixture
def durable() -> Durable:
    return Durable()


@pytest.fixture
def bank(database: Database, tmp_path: Path, durable: Durable) -> Bank:
    bank = Bank(database, LocalTensors(tmp_path / "tensors"), exact_limit=0, durable=durable)
    bank.bind("default", MODEL)
    return bank


def test_publish_and_evict_reach_the_index(database: Database, tmp_path: Path, durable: Durable) -> None:
    bank = Bank(database, LocalTensors(tmp_path), index="durable", durable=durable)
    bank.bind("default", MODEL)
    memory = learner(bank)("a", X, kv=unit(1, 2))
    assert durable.ids("default", KeyKind.INPUT) == durable.ids("default", KeyKind.KV) == {memory.id}
    candidate = learner(bank)("b", Y, state=MemoryState.CANDIDATE)
    assert candidate.id not in durable.ids("default", KeyKind.INPUT)
    bank.transition("default", memory.id, MemoryState.RETIRED, actor="t", reason=None)
    assert durable.ids("default", KeyKind.INPUT) == durable.ids("default", KeyKind.KV) == set()
    assert bank.feed() == 0


def test_what_the_index_missed_is_still_found(
    bank: Bank, durable: Durable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = learner(bank)
    first = learn("a", X)
    durable.down = True
    with caplog.at_level(logging.WARNING):
        second = learn("b", Y)
    assert "the index gets it when it is fed" in caplog.text
    durable.down = False
    assert durable.ids("default", KeyKind.INPUT) == {first.id}
    assert [hit.memory_id for hit in bank.nearest("default", KeyKind.INPUT, Y, 2)] == [second.id, first.id]
    assert durable.ids("default", KeyKind.INPUT) == {first.id}, "few changes are looked through, not fed"
    monkeypatch.setattr(search, "_INLINE", 0)
    assert [hit.memory_id for hit in bank.nearest("default", KeyKind.INPUT, Y, 1)] == [second.id]
    assert durable.ids("default", KeyKind.INPUT) == {first.id, second.id}


def test_a_change_that_is_committed_does_not_fail_for_the_index(
    bank: Bank, durable: Durable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise StoreBusy("the database is locked")

    monkeypatch.setattr(durable, "apply", busy)
    with caplog.at_level(logging.WARNING):
        memory = learner(bank)("a", X)
    assert "the database is locked. The change is committed" in caplog.text
    assert bank.jobs.list("default")[0].memory_id == memory.id


def test_a_surplus_entry_is_never_returned(bank: Bank, durable: Durable) -> None:
    memory = learner(bank)("a", X)
    durable.apply("default", KeyKind.INPUT, [IndexEntry("mem_of_nobody", X)], ())
    assert [hit.memory_id for hit in bank.nearest("default", KeyKind.INPUT, X, 5)] == [memory.id]


def test_an_eviction_counts_before_the_index_knows(bank: Bank, durable: Durable) -> None:
    learn = learner(bank)
    memory, other = learn("a", X), learn("b", Y)
    durable.down = True
    bank.transition("default", memory.id, MemoryState.RETIRED, actor="t", reason=None)
    durable.down = False
    assert memory.id in durable.ids("default", KeyKind.INPUT)
    assert [hit.memory_id for hit in bank.nearest("default", KeyKind.INPUT, X, 5)] == [other.id]


def test_a_dead_index_degrades_to_a_scan_or_fails_as_asked(
    bank: Bank, durable: Durable, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    memory = learner(bank)("a", X)
    durable.down = True
    with caplog.at_level(logging.WARNING):
        assert [hit.memory_id for hit in bank.nearest("default", KeyKind.INPUT, X, 1)] == [memory.id]
    assert "the index is down. Answering by exact scan" in caplog.text
    strict = Bank(database, bank.tensors, index="durable", durable=durable)
    with pytest.raises(IndexUnavailable, match="down"):
        strict.nearest("default", KeyKind.INPUT, X, 1)


@pytest.mark.parametrize("anew", [False, True])
def test_a_question_does_not_wait_for_who_feeds(
    bank: Bank, durable: Durable, monkeypatch: pytest.MonkeyPatch, anew: bool
) -> None:
    """A feeder of this process stands still in the middle of its batch; far behind, or with an index made anew."""
    learn = learner(bank)
    first = learn("a", X)
    durable.down = True
    second = learn("b", Y)
    durable.down = False
    durable.rebuilt = anew
    monkeypatch.setattr(search, "_INLINE", 0)
    feeding, asked = threading.Event(), threading.Event()

    def stand(*_: object) -> None:
        feeding.set()
        assert asked.wait(60)

    monkeypatch.setattr(durable, "acknowledge_rebuild" if anew else "apply", stand)
    with ThreadPoolExecutor(2) as pool:
        feeder = pool.submit(bank.feed)
        assert feeding.wait(60)
        try:
            hits = pool.submit(bank.nearest, "default", KeyKind.INPUT, Y, 2).result(timeout=300)
        finally:
            asked.set()
        feeder.result()
    assert [hit.memory_id for hit in hits] == [second.id, first.id]


def test_counting_what_is_active_stops_above_the_limit(database: Database, tmp_path: Path, durable: Durable) -> None:
    bank = Bank(database, LocalTensors(tmp_path / "tensors"), exact_limit=2, durable=durable)
    bank.bind("default", MODEL)
    learn, served = learner(bank), []
    for n in range(5):
        learn(f"q{n}", X)
        before = durable.searched
        assert len(bank.nearest("default", KeyKind.INPUT, X, 5)) == n + 1
        served.append(durable.searched > before)
    assert served == [False, False, True, True, True]
    assert bank._search._active("default") == 3


def test_a_lost_index_is_fed_from_the_beginning(
    bank: Bank, durable: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "BATCH", 2)
    learn = learner(bank)
    memories = {learn(f"q{n}", X).id for n in range(5)}
    assert bank.feed() == 0
    durable.wipe()
    assert bank.feed() == 0, "an index that says nothing is believed"
    durable.rebuilt = True
    assert bank.feed() == 5
    assert durable.ids("default", KeyKind.INPUT) == memories


def test_while_an_index_is_scrubbed_nobody_takes_what_is_left_for_everything(
    database: Database, tmp_path: Path
) -> None:
    class Dropping(Durable):
        """Scrubbing drops what it has of the namespace, as servers do; ``during``: asked in the middle."""

        during: Callable[[], object] | None = None

        def scrub(self, namespace: str) -> bool:
            for kind in KeyKind:
                self.apply(namespace, kind, [], self.ids(namespace, kind))
            if self.during is not None:
                self.during()
            return True

    shared = Dropping()
    one, two = (Bank(database, LocalTensors(tmp_path), index="durable", durable=shared) for _ in range(2))
    one.bind("default", MODEL)
    gone, kept = learner(one)("a", X), learner(one)("b", Y)
    seen: list[list[str]] = []
    shared.during = lambda: seen.append([hit.memory_id for hit in two.nearest("default", KeyKind.INPUT, Y, 5)])
    one.purge("default", [gone.id], actor="t", reason=None)
    assert seen == [[kept.id]]
    shared.during = lambda: 1 / 0  # the process dies
    with pytest.raises(ZeroDivisionError):
        one.scrub_indexes("default")
    assert [hit.memory_id for hit in two.nearest("default", KeyKind.INPUT, Y, 5)] == [kept.id]
    assert two.feed() > 0
    assert shared.ids("default", KeyKind.INPUT) == {kept.id}


def test_an_index_that_is_not_used_any_more_keeps_no_work(
    bank: Bank, database: Database, tmp_path: Path, durable: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner(bank)("before", X)
    exact = Bank(database, LocalTensors(tmp_path / "tensors"), index="exact")
    for n in range(3):
        learner(exact)(f"q{n}", Y)
    prune = partial(upkeep.prune_outbox, database, "default", actor="t", vault=bank.vault, tell=print, keep=0)
    assert sum(prune()) == 1, "what the index has; the rest waits for it"
    assert examine(exact).notes == ()

    monkeypatch.setattr(upkeep, "STALE", timedelta(0))
    assert sum(prune()) == 3
    (note,) = examine(exact).notes
    assert note.startswith("the durable index of namespace 'default' was last fed at revision 3, and lacks a change")
    assert "durable" in exact.scrub_indexes("default"), "it may still hold what is purged"

    bank.feed()
    assert durable.ids("default", KeyKind.INPUT) == {memory.id for memory in bank.memories("default")}
    assert examine(bank).notes == ()


def test_chroma_is_fed_from_the_first_memory_and_serves_above_the_limit(database: Database, tmp_path: Path) -> None:
    chroma = ChromaIndex(tmp_path / "chroma")
    bank = Bank(database, LocalTensors(tmp_path / "tensors"), exact_limit=1, durable=chroma)
    bank.bind("default", MODEL)
    learn = learner(bank)
    first = learn("a", X)
    assert chroma.ids("default", KeyKind.INPUT) == {first.id}
    second = learn("b", Y)
    assert chroma.ids("default", KeyKind.INPUT) == {first.id, second.id}
    assert [hit.memory_id for hit in bank.nearest("default", KeyKind.INPUT, Y, 2)] == [second.id, first.id]
    chroma.close()
