"""The ledger's chain: what breaks it is found and named, what is erased leaves it whole."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from bank_helpers import Learn, unit
from sqlalchemy import text

from elm_agent.errors import BankMoved, NotFound, StoreBusy
from elm_agent.records import EventKind, MemoryState
from elm_agent.storage.bank import Bank
from elm_agent.storage.ledger import chain
from elm_agent.storage.sql.database import Database
from elm_agent.storage.vault.base import PlainVault

X = unit(1, 0, 0, 0)
CHANGE = {"actor": "Größe\x00", "reason": "because of 数学"}


@pytest.fixture
def written(bank: Bank, learn: Learn) -> Bank:
    """Nine events: two memories of three each, a pin, an eviction with a note, a restoration."""
    first, second = learn("one", X), learn("two", unit(0, 1, 0, 0))
    bank.pin("default", second.id, True, actor="t")
    bank.transition("default", first.id, MemoryState.RETIRED, **CHANGE)
    bank.transition("default", first.id, MemoryState.ACTIVE, **CHANGE)
    return bank


def broken_at(bank: Bank) -> int | None:
    report = chain.verify(bank.database, "default")
    return report.broken.revision if report.broken else None


def change(database: Database, statement: str, **values: Any) -> None:
    with database.write() as session:
        session.execute(text(statement), values)


def test_the_digest_of_an_event_by_hand() -> None:
    """Against the canonical JSON written out, so that old banks stay verifiable."""
    made = chain.link(
        "sha256:00",
        namespace="n",
        revision=2,
        kind="pinned",
        memory_id=None,
        actor="ü",
        detail={"b": 1, "a": [0.5]},
        note_digest=None,
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )
    canonical = (
        '{"actor":"ü","algorithm":"sha256","created_at":"2026-01-02T03:04:05.000000+00:00","detail":{"a":[0.5],"b":1},'
        '"kind":"pinned","memory_id":null,"namespace":"n","note_digest":null,"previous":"sha256:00","revision":2}'
    )
    assert json.loads(canonical)["revision"] == 2
    assert made == "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
    assert chain.genesis("n") == "sha256:" + hashlib.sha256(b'{"algorithm":"sha256","genesis":"n"}').hexdigest()


def test_a_whole_chain(written: Bank) -> None:
    seen: list[tuple[int, int]] = []
    report = chain.verify(written.database, "default", progress=lambda *counts: seen.append(counts))
    assert (report.events, report.broken, report.head) == (9, None, written.events("default")[-1].digest)
    assert [event.note for event in written.events("default")][-2:] == ["because of 数学"] * 2
    with pytest.raises(NotFound):
        chain.verify(written.database, "nobody")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET kind = 'evicted' WHERE revision = 7",
        "UPDATE events SET memory_id = 'mem_other' WHERE revision = 7",
        "UPDATE events SET actor = 'nobody' WHERE revision = 7",
        "UPDATE events SET detail = '{\"x\": 1}' WHERE revision = 7",
        "UPDATE events SET created_at = '2020-01-01 00:00:00' WHERE revision = 7",
        "UPDATE events SET note_digest = 'sha256:00' WHERE revision = 7",
        "UPDATE events SET digest = 'sha256:00' WHERE revision = 7",
        "DELETE FROM events WHERE revision = 7",
    ],
)
def test_an_edit_is_found_where_it_was_made(written: Bank, statement: str) -> None:
    change(written.database, statement)
    assert broken_at(written) == 7


def test_notes_are_bound_too(written: Bank) -> None:
    change(written.database, "UPDATE events SET note = 'because' WHERE revision = 8")
    assert broken_at(written) == 8
    change(written.database, "UPDATE events SET note = NULL WHERE revision = 8")
    assert broken_at(written) == 8
    change(written.database, "UPDATE events SET salt = NULL WHERE revision = 8")
    assert broken_at(written) is None, "an erased note leaves the chain whole"


def test_first_and_last_events_cannot_go(written: Bank) -> None:
    change(written.database, "DELETE FROM events WHERE revision = 9")
    assert broken_at(written) == 9
    change(written.database, "UPDATE namespaces SET revision = 8 WHERE name = 'default'")
    assert broken_at(written) == 8, "the head is not that of the last event"
    change(written.database, "DELETE FROM events WHERE revision = 1")
    assert broken_at(written) == 1


def test_reordered_and_inserted_events_are_found(written: Bank) -> None:
    for old, new in ((4, 99), (5, 4), (99, 5)):
        change(written.database, f"UPDATE events SET revision = {new} WHERE revision = {old}")
    assert broken_at(written) == 4
    for old, new in ((4, 99), (5, 4), (99, 5)):
        change(written.database, f"UPDATE events SET revision = {new} WHERE revision = {old}")
    assert broken_at(written) is None
    columns = "kind, actor, detail, digest, created_at"
    change(
        written.database,
        f"INSERT INTO events (namespace, revision, {columns}) SELECT namespace, 10, {columns} FROM events "
        "WHERE revision = 9",
    )
    assert broken_at(written) == 10


def test_the_history_can_be_filtered(written: Bank) -> None:
    (pinned,) = written.events("default", kind=EventKind.PINNED)
    assert pinned.revision == 7
    assert [event.revision for event in written.events("default", actor="Größe\ufffd")] == [8, 9]
    assert [event.revision for event in written.events("default", limit=2)] == [8, 9]
    late = written.events("default", since=pinned.created_at)
    assert [event.revision for event in late] == [7, 8, 9]
    assert [event.revision for event in written.events("default", until=pinned.created_at)] == [1, 2, 3, 4, 5, 6]


def test_concurrent_writers_keep_every_chain_whole(bank: Bank, database_url: str, learn: Learn) -> None:
    memories = [learn(f"question {n}", unit(1, n + 1, 0, 0)).id for n in range(4)]
    other = Bank(Database.open(database_url), bank.tensors, index="exact")

    def flip(n: int) -> None:
        which = (bank, other)[n % 2]
        which.pin("default", memories[n % 4], n % 8 < 4, actor=f"t{n}")
        which.note_event("default", EventKind.REVIEWED, actor="t", detail={"n": n}, note=f"note {n}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(flip, range(80)))
    report = chain.verify(bank.database, "default")
    assert report.broken is None
    assert report.events == len(bank.events("default")) >= 12 + 80
    other.close()


def test_a_bank_that_moved_takes_no_changes(written: Bank, learn: Learn) -> None:
    change(written.database, "UPDATE namespaces SET moved_to = 'postgresql://elsewhere' WHERE name = 'default'")
    (memory, *_) = written.memories("default")
    with pytest.raises(BankMoved, match="moved to postgresql://elsewhere: open the bank there"):
        written.pin("default", memory.id, False, actor="t")
    with pytest.raises(BankMoved):
        learn("three", X)
    assert written.memory("default", memory.id) == memory


def test_a_busy_database_is_no_altered_note(written: Bank) -> None:
    class BusyVault(PlainVault):
        def open(self, namespace: str, text: str) -> str:  # noqa: ARG002
            raise StoreBusy("the database is locked")

    with pytest.raises(StoreBusy):
        chain.verify(written.database, "default", vault=BusyVault())
