"""A ledger is edited, cut, reordered, added to, forked and written anew: each is found, at the first broken place.

ELM_TAMPERINGS=1000 does that many on each database.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dying_worker import make_worker
from kill_child import MODEL, NAMESPACE, RECIPE, Place
from sqlalchemy import delete, insert, select, update

from elm_agent.records import MemoryState, utcnow
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import FindingKind, examine
from elm_agent.storage.ledger import chain, checkpoints
from elm_agent.storage.ledger.signing import SigningKey
from elm_agent.storage.sql.schema import EventRow, NamespaceRow

COUNT = int(os.environ.get("ELM_TAMPERINGS", "60"))
COLUMNS: dict[str, Callable[[Any], Any]] = {
    "kind": lambda kind: "evicted" if kind != "evicted" else "pinned",
    "memory_id": lambda _: "mem_another",
    "actor": lambda actor: actor + " ",
    "detail": lambda detail: detail | {"more": 0},
    "note": lambda note: (note or "") + ".",
    "salt": lambda salt: (salt or "") + "0",
    "note_digest": lambda _: "sha256:" + "0" * 64,
    "digest": lambda digest: digest[:-1] + ("0" if digest[-1] != "0" else "1"),
    "created_at": lambda at: at.replace(microsecond=(at.microsecond + 1) % 10**6),
}


@pytest.fixture
def bank(database_url: str, tmp_path: Path) -> Any:
    with closing(Place(database_url, tmp_path).open()) as opened:
        opened.bind(NAMESPACE, MODEL)
        live(opened, 3)
        yield opened


def live(bank: Bank, memories: int) -> None:
    """Some more history: each memory is learnt, evicted with a note and restored."""
    for _ in range(memories):
        question = f"question {random.random()}"
        bank.jobs.enqueue(NAMESPACE, question, task="math", model_id=MODEL.id, recipe=RECIPE)
        make_worker(bank).run_one()
        (newest,) = bank.memories(NAMESPACE, limit=1)
        for state in (MemoryState.RETIRED, MemoryState.ACTIVE):
            bank.transition(NAMESPACE, newest.id, state, actor="someone", reason="for a reason")


Event = dict[str, Any]


def events_of(bank: Bank) -> list[Event]:
    with bank.database.read() as session:
        found = session.execute(select(EventRow.__table__).order_by(EventRow.revision)).mappings()
        return [dict(row) for row in found]


def put(bank: Bank, events: list[Event], **row: Any) -> None:
    """Whoever owns the database writes whatever he likes."""
    with bank.database.write() as session:
        session.execute(delete(EventRow))
        session.execute(insert(EventRow), events)
        if row:
            session.execute(update(NamespaceRow).values(row))


def tamper(events: list[Event], dice: random.Random) -> tuple[list[Event], int, str]:
    """Changed events, the first revision that is wrong, and what was done."""
    at = dice.randrange(len(events))
    how = dice.choice((*COLUMNS, "drop", "swap", "insert", "repeat"))
    changed = [dict(event) for event in events]
    if how in COLUMNS:
        changed[at][how] = COLUMNS[how](changed[at][how])
    elif how == "drop":
        del changed[at]
    elif how == "swap":
        at = min(at, len(events) - 2)
        later = dice.randrange(at + 1, len(events))
        changed[at]["revision"], changed[later]["revision"] = changed[later]["revision"], changed[at]["revision"]
    elif how == "insert":
        changed = [*changed[:at], dict(changed[at], actor="forger"), *changed[at:]]
        changed = [dict(event, revision=n) for n, event in enumerate(changed, 1)]
    else:
        changed.append(dict(changed[at], revision=len(events) + 1))
        at = len(events)
    return changed, at + 1, how


def test_every_tampering_is_found_where_it_is(bank: Bank) -> None:
    dice, events = random.Random(COUNT), events_of(bank)
    assert chain.verify(bank.database, NAMESPACE).broken is None
    for _ in range(COUNT):
        changed, revision, how = tamper(events, dice)
        put(bank, changed)
        broken = chain.verify(bank.database, NAMESPACE).broken
        assert broken is not None, f"{how} at {revision} was not found"
        assert broken.revision == revision, f"{how} at {revision} was found at {broken.revision}"
    (finding,) = (one for one in examine(bank, repair=True).findings if one.kind is FindingKind.BROKEN_CHAIN)
    assert (finding.namespace, finding.action) == (NAMESPACE, None), "nobody can prove what it was"
    put(bank, events)
    assert chain.verify(bank.database, NAMESPACE).broken is None


def relink(events: list[Event]) -> list[Event]:
    """What the owner of a database can do who knows the arithmetic: hash everything anew."""
    head, linked = chain.genesis(NAMESPACE), []
    for revision, event in enumerate(events, 1):
        names = ("kind", "memory_id", "actor", "detail", "note_digest", "created_at")
        covered = {name: event[name] for name in names}
        head = chain.link(head, namespace=NAMESPACE, revision=revision, **covered)
        linked.append(dict(event, revision=revision, digest=head))
    return linked


@pytest.mark.parametrize("how", ["cut", "cut more", "rewrite", "forge", "lose all"])
def test_what_a_chain_cannot_show_a_checkpoint_does(bank: Bank, tmp_path: Path, how: str) -> None:
    key = SigningKey.generate()
    checkpoints.write(checkpoints.take(bank.database, key=key), tmp_path / "checkpoint")
    kept = checkpoints.read(tmp_path / "checkpoint")
    checkpoints.check_signature(kept, key.public)
    live(bank, 1)
    assert [one.problem for one in checkpoints.compare(bank.database, kept)] == [None], "it went on, that is all"
    events, at = events_of(bank), kept.chains[0].revision
    forged = {
        "cut": events[: at - 1],
        "cut more": events[:2],
        "rewrite": relink([dict(event, actor="me") for event in events]),
        "forge": relink([*events[: at - 1], dict(events[at - 1], actor="me"), *events[at:]]),
        "lose all": events[:1],
    }[how]
    put(bank, forged, revision=len(forged), head=forged[-1]["digest"])
    assert chain.verify(bank.database, NAMESPACE).broken is None, "the chain alone is whole"
    (compared,) = checkpoints.compare(bank.database, kept)
    assert compared.problem is not None
    assert compared.namespace == NAMESPACE


def test_a_fork_is_found_by_a_checkpoint_of_either_side(tmp_path: Path) -> None:
    """Two copies of one bank that went on differently, each whole by itself."""
    key, sides = SigningKey.generate(), []
    one = Place(f"sqlite:///{tmp_path / 'one.sqlite'}", tmp_path / "one")
    with closing(one.open()) as bank:
        bank.bind(NAMESPACE, MODEL)
        live(bank, 2)
    copy = tmp_path / "two.sqlite"
    copy.write_bytes((tmp_path / "one.sqlite").read_bytes())
    for place in (one, Place(f"sqlite:///{copy}", tmp_path / "two")):
        with closing(place.open()) as bank:
            live(bank, 1)
            sides.append((place, checkpoints.take(bank.database, key=key)))
    for (place, mine), (_, other) in (sides, sides[::-1]):
        with closing(place.open()) as bank:
            assert [compared.problem for compared in checkpoints.compare(bank.database, mine)] == [None]
            (compared,) = checkpoints.compare(bank.database, other)
            assert "history was written anew" in (compared.problem or "")


def test_a_note_that_nobody_purged_is_missed(bank: Bank) -> None:
    """Erasing note and salt leaves a chain whole, because purges must; then there has to be a tombstone."""
    (newest,) = bank.memories(NAMESPACE, limit=1)
    with bank.database.write() as session:
        noted = (EventRow.memory_id == newest.id) & (EventRow.kind == "evicted")
        session.execute(update(EventRow).where(noted).values(note=None, salt=None))
    assert chain.verify(bank.database, NAMESPACE).broken is None
    (finding,) = examine(bank).findings
    assert finding.kind is FindingKind.BROKEN_CHAIN
    assert "its note was erased, and no purge did that" in finding.problem
    bank.purge(NAMESPACE, [newest.id], actor="test", reason=None)
    assert examine(bank).clean


def test_an_event_of_tomorrow_is_noticed(bank: Bank) -> None:
    assert examine(bank, now=utcnow() - timedelta(hours=1)).findings[0].kind is FindingKind.FUTURE_EVENT
    assert examine(bank).clean
