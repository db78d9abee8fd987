"""A pass of upkeep: what it changes, what it leaves, and that it can be stopped at every step and run by two."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from eviction_helpers import NOW, Spec, Used, ago, fill, key
from sqlalchemy import func, select

from elm_agent.errors import BankMoved, InputError, NotFound, StorageError
from elm_agent.memory import eviction
from elm_agent.memory.eviction import Rules
from elm_agent.memory.maintain import MAINTAIN_STEPS, Scheduled, maintain
from elm_agent.records import EventKind, KeyKind, MemoryState, Route, UseOutcome, utcnow
from elm_agent.storage import upkeep
from elm_agent.storage.bank import Bank
from elm_agent.storage.ledger.chain import verify
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import NamespaceRow, OutboxRow, UseRow
from elm_agent.storage.tensors.cache import TensorCache
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.storage.tensors.remote import FsspecTensors

STATES = MemoryState


@pytest.fixture
def either_bank(database_url: str, tmp_path: Path) -> Iterator[Bank]:
    bank = Bank(Database.open(database_url, busy_seconds=20), LocalTensors(tmp_path / "tensors"), index="exact")
    yield bank
    bank.close()


def states(bank: Bank, namespace: str, ids: list[str]) -> list[MemoryState]:
    return [bank.memory(namespace, memory_id).state for memory_id in ids]


def test_eviction_is_soft_and_says_who_and_why(either_bank: Bank) -> None:
    bank = either_bank
    namespace, [old, young, pinned] = fill(bank, [Spec(days=40), Spec(), Spec(days=40, pinned=True)])
    report = maintain(bank, None, Rules(ttl_days=30), now=NOW)
    assert (report.total("evicted"), report.total("kept"), report.namespaces[0].by_policy) == (1, 1, {"ttl": 1})
    memory = bank.memory(namespace, old)
    assert (memory.state, memory.reason) == (STATES.RETIRED, "made on 2026-04-22, more than 30 days ago")
    event = bank.events(namespace, old)[-1]
    assert (event.kind, event.actor, event.note) == (EventKind.EVICTED, "policy:ttl", memory.reason)
    assert "more than" not in str(event.detail)
    assert [hit.memory_id for hit in bank.nearest(namespace, KeyKind.INPUT, key(0), 5)] == sorted([young, pinned])
    bank.transition(namespace, old, STATES.ACTIVE, actor="person", reason=None)  # the undo
    assert len(bank.nearest(namespace, KeyKind.INPUT, key(0), 5)) == 3
    assert verify(bank.database, namespace).broken is None


def test_what_expired_is_not_returned_before_maintenance_ran(either_bank: Bank) -> None:
    left = (utcnow() - NOW).total_seconds() / 86_400
    namespace, [_, valid] = fill(either_bank, [Spec(valid_days=left - 1), Spec(valid_days=left + 1)])
    assert [hit.memory_id for hit in either_bank.nearest(namespace, KeyKind.INPUT, key(0), 5)] == [valid]


def test_purge_waits_for_the_undo_window_and_spares_pins(either_bank: Bank) -> None:
    bank, retired = either_bank, STATES.RETIRED
    specs = [
        Spec(days=40, since=8, state=retired),
        Spec(days=40, since=6, state=retired),
        Spec(days=40, since=8, state=retired, pinned=True),
        Spec(days=40),
    ]
    namespace, [gone, *left] = fill(bank, specs)
    dry = maintain(bank, None, Rules(), purge=True, now=NOW, dry_run=True)
    assert (dry.total("purged"), bank.memory(namespace, gone).state) == (1, retired)
    assert maintain(bank, None, Rules(), purge=True, now=NOW).total("purged") == 1
    with pytest.raises(NotFound, match="was purged"):
        bank.memory(namespace, gone)
    assert states(bank, namespace, left) == [retired, retired, STATES.ACTIVE]
    assert maintain(bank, None, Rules(), purge=True, now=NOW).total("purged") == 0


def test_uses_are_counted_once(either_bank: Bank) -> None:
    bank = either_bank
    uses = [Used(1), Used(1, Route.AGREED), Used(2, outcome=UseOutcome.FIXED)]
    namespace, [memory_id, other] = fill(bank, [Spec(uses=uses), Spec()])
    assert maintain(bank, [namespace], Rules(), now=NOW).total("used_events") == 1
    [event] = [event for event in bank.events(namespace, memory_id) if event.kind is EventKind.USED]
    assert event.detail == {
        "uses": 3,
        "routes": {"memory": 2, "agreed": 1},
        "outcomes": {"unknown": 2, "fixed": 1},
    }
    with bank.database.read() as session:
        assert set(session.scalars(select(UseRow.ledgered))) == {event.revision}
    assert maintain(bank, [namespace], Rules(), now=NOW).total("used_events") == 0
    assert [e.kind for e in bank.events(namespace, other) if e.kind is EventKind.USED] == []
    assert verify(bank.database, namespace).broken is None


def test_the_outbox_is_pruned_and_indexes_still_know(either_bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = either_bank
    monkeypatch.setattr(upkeep, "_ROWS", 3)
    namespace, ids = fill(bank, [Spec(degrees=n) for n in range(12)])
    behind = Bank(bank.database, bank.tensors, index="exact")
    assert len(behind.nearest(namespace, KeyKind.INPUT, key(0), 50)) == 12  # its index is loaded
    for memory_id in ids[:4]:
        bank.transition(namespace, memory_id, STATES.RETIRED, actor="person", reason=None)
    kept = {"actor": "test", "vault": bank.vault, "tell": lambda _name, _detail: None, "keep": 1}
    assert sum(upkeep.prune_outbox(bank.database, namespace, **kept)) == 15
    with bank.database.read() as session:
        row = session.get_one(NamespaceRow, namespace)
        assert row.outbox_floor == row.revision - 1
        assert session.scalar(select(func.count()).select_from(OutboxRow)) == 1
    found = {hit.memory_id for hit in behind.nearest(namespace, KeyKind.INPUT, key(0), 50)}
    assert found == set(ids[4:])
    assert sum(upkeep.prune_outbox(bank.database, namespace, **kept)) == 0


class Stop(BaseException):
    """Stands for a signal."""


@pytest.mark.parametrize("step", MAINTAIN_STEPS)
def test_a_pass_may_stop_at_every_step(either_bank: Bank, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stopped pass left, the next one does; nothing is done twice, no chain breaks."""
    monkeypatch.setattr(upkeep, "KEPT", 0)
    monkeypatch.setattr(upkeep.prune_outbox, "__kwdefaults__", {"keep": 0})
    bank = either_bank
    old = [Spec(days=40, uses=[Used(1), Used(2)]) for _ in range(3)]
    namespace, ids = fill(bank, [*old, Spec(days=40, since=9, state=STATES.RETIRED), Spec()])

    def observe(name: str, _detail: dict[str, Any]) -> None:
        if name == step:
            raise Stop

    options: dict[str, Any] = {"purge": True, "now": NOW}
    with pytest.raises(Stop):
        maintain(bank, None, Rules(ttl_days=30), **options, observe=observe)
    maintain(bank, None, Rules(ttl_days=30), **options)
    assert states(bank, namespace, ids[:3]) == [STATES.RETIRED] * 3
    assert bank.memory(namespace, ids[4]).state is STATES.ACTIVE
    events = bank.events(namespace)
    for memory_id in ids[:3]:
        kinds = [event.kind for event in events if event.memory_id == memory_id]
        assert (kinds.count(EventKind.EVICTED), kinds.count(EventKind.USED)) == (1, 1)
    assert [event.kind for event in events if event.memory_id == ids[3]].count(EventKind.PURGED) == 1
    assert verify(bank.database, namespace).broken is None
    again = maintain(bank, None, Rules(ttl_days=30), **options)
    assert [again.total(name) for name in ("evicted", "purged", "used_events")] == [0, 0, 0]


def test_two_passes_at_once_share_the_work(either_bank: Bank) -> None:
    bank = either_bank
    retired = [Spec(days=40, since=9, state=STATES.RETIRED) for _ in range(20)]
    namespace, ids = fill(bank, [*(Spec(days=40, uses=[Used(1)]) for _ in range(20)), *retired])
    reports, failures = [], []

    def work() -> None:
        try:
            reports.append(maintain(bank, [namespace], Rules(ttl_days=30), purge=True, now=NOW))
        except BaseException as error:  # noqa: BLE001 - looked at below
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sum(report.total("evicted") for report in reports) == 20
    assert sum(report.total("used_events") for report in reports) == 20
    assert states(bank, namespace, ids[:20]) == [STATES.RETIRED] * 20
    kinds = [event.kind for event in bank.events(namespace)]
    assert (kinds.count(EventKind.EVICTED), kinds.count(EventKind.PURGED)) == (20, 20)
    assert verify(bank.database, namespace).broken is None


def test_a_pin_that_comes_in_between_wins(either_bank: Bank) -> None:
    bank = either_bank
    namespace, [memory_id] = fill(bank, [Spec(days=40)])

    def observe(name: str, _detail: dict[str, Any]) -> None:
        if name == "evict.planned":
            bank.pin(namespace, memory_id, True, actor="person")

    report = maintain(bank, [namespace], Rules(ttl_days=30), now=NOW, observe=observe)
    assert report.total("evicted") == 0
    assert bank.memory(namespace, memory_id).state is STATES.ACTIVE


def test_wrong_rules_change_nothing(either_bank: Bank) -> None:
    namespace, [memory_id] = fill(either_bank, [Spec(days=40, valid_days=-1)])
    with pytest.raises(InputError, match="unknown symbol"):
        maintain(either_bank, None, Rules(where="colour == 1"), now=NOW)
    with pytest.raises(NotFound, match="'nowhere' is not in this bank"):
        maintain(either_bank, ["nowhere"], Rules(), now=NOW)
    assert either_bank.memory(namespace, memory_id).state is STATES.ACTIVE


def test_what_moved_away_is_passed_over_unless_it_is_named(either_bank: Bank) -> None:
    bank = either_bank
    gone, [elsewhere] = fill(bank, [Spec(days=40)])
    namespace, [here] = fill(bank, [Spec(days=40)])
    with bank.database.write() as session:
        session.get_one(NamespaceRow, gone).moved_to = "another place"
    for dry_run in (True, False):
        report = maintain(bank, None, Rules(ttl_days=30), purge=True, now=NOW, dry_run=dry_run)
        skipped = {one.namespace: one.skipped for one in report.namespaces}
        assert (skipped, report.total("evicted")) == ({gone: "it was moved to another place", namespace: None}, 1)
        with pytest.raises(BankMoved, match="was moved to another place: open the bank there"):
            maintain(bank, [namespace, gone], Rules(ttl_days=30), now=NOW, dry_run=dry_run)
    assert states(bank, namespace, [here]) == [STATES.RETIRED]
    assert states(bank, gone, [elsewhere]) == [STATES.ACTIVE]


def test_the_cache_of_a_remote_store_is_swept(database_url: str, tmp_path: Path) -> None:
    cache = TensorCache(tmp_path / "cache", max_bytes=1 << 20, max_age_seconds=3600)
    store = FsspecTensors(f"local://{tmp_path}/tensors", cache=cache)
    bank = Bank(Database.open(database_url, busy_seconds=20), store, index="exact")
    try:
        namespace, _ = fill(bank, [Spec(), Spec()])
        for memory in bank.memories(namespace):
            bank.prompt(namespace, memory.id)
        copies = sorted((tmp_path / "cache").glob("*/??/*"))
        assert len(copies) == 2
        os.utime(copies[0], (0, 0))
        assert maintain(bank, None, Rules(), dry_run=True).cached_files == 0
        assert copies[0].exists()
        assert maintain(bank, None, Rules()).cached_files == 1
        assert [path.exists() for path in copies] == [False, True]
        assert maintain(bank, None, Rules()).cached_files == 0
    finally:
        bank.close()


def test_comparing_all_pairs_of_many_is_said(
    either_bank: Bank, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    namespace, [_, _, _] = fill(either_bank, [Spec(0), Spec(1), Spec(90)])
    rules = Rules(duplicate_similarity=0.99)
    assert maintain(either_bank, [namespace], rules, now=NOW, dry_run=True).namespaces[0].notes == []
    monkeypatch.setattr(eviction, "EXACT_LIMIT", 2)
    report = maintain(either_bank, [namespace], rules, now=NOW)
    [note] = report.namespaces[0].notes
    assert note.startswith("each of 3 active memories is compared with all others to find near-duplicates")
    assert "set `index` to 'pgvector' or a server" in note
    assert [record.getMessage() for record in caplog.records] == [f"namespace {namespace}: {note}"]
    assert report.total("evicted") == 1  # and it is done


def test_the_clock_is_the_database_s_own(either_bank: Bank) -> None:
    age = (utcnow() - ago(0)).total_seconds() / 86_400
    _, [_, _] = fill(either_bank, [Spec(days=3 - age), Spec(days=1 - age)])
    assert maintain(either_bank, None, Rules(ttl_days=2)).total("evicted") == 1


def test_a_schedule_runs_when_it_is_due_and_survives_failures(caplog: pytest.LogCaptureFixture) -> None:
    ran: list[int] = []

    def work() -> None:
        ran.append(1)
        raise StorageError("the disk is full")

    often, seldom = Scheduled(work, 0.0), Scheduled(lambda: ran.append(2), timedelta(days=1).total_seconds())
    for _ in range(3):
        often()
        seldom()
    assert ran.count(1) == 3
    assert ran.count(2) == 1
    assert "the disk is full" in caplog.text


def test_what_is_restored_in_between_is_not_purged(either_bank: Bank) -> None:
    bank, retired = either_bank, STATES.RETIRED
    namespace, [saved, gone] = fill(bank, [Spec(days=40, since=9, state=retired) for _ in range(2)])

    def observe(name: str, _detail: dict[str, Any]) -> None:
        if name == "purge.planned":
            bank.transition(namespace, saved, STATES.ACTIVE, actor="person", reason=None)

    report = maintain(bank, [namespace], Rules(), purge=True, now=NOW, observe=observe)
    assert report.total("purged") == 1
    assert bank.memory(namespace, saved).state is STATES.ACTIVE
    with pytest.raises(NotFound, match="was purged"):
        bank.memory(namespace, gone)
