"""What answering, learning and an idle pass of upkeep ask the database reads by an index, however large the bank is.

The plans are SQLite's, which never reads a whole table where an index would do. A pass of upkeep walks through the
namespaces that it keeps up, page by page, for what expired: that is its work, and nobody waits for it.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bank_helpers import MODEL, learner, unit
from sqlalchemy import event

from elm_agent.bench.filling import use_of
from elm_agent.memory.eviction import Rules
from elm_agent.memory.maintain import maintain
from elm_agent.records import Feedback, KeyKind, UseOutcome
from elm_agent.storage.bank import Bank
from elm_agent.storage.posterior import HarmRule, Weights
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors

X = unit(1, 0, 0, 0)
GROWING = ("memories", "memory_keys", "episodes", "events", "uses", "outbox", "jobs", "tombstones")


@contextmanager
def statements(database: Database) -> Iterator[list[tuple[str, Any]]]:
    told: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        told.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield told
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


TABLE = re.compile(rf"SCAN ({'|'.join(GROWING)})\b")
SMALL = "INDEX ix_tombstones_pending"  # holds the purges that are not finished, and no others
NAMESPACE = re.compile(rf"SEARCH ({'|'.join(GROWING)}) USING (?!{SMALL}).*\((memory_)?namespace=\?( AND kind=\?)?\)$")


def reading(whole: re.Pattern[str], file: Path, told: list[tuple[str, Any]]) -> set[str]:
    """The statements whose plan has a line like ``whole``, and no limit."""
    found = set()
    connection = sqlite3.connect(file)
    for statement, parameters in told:
        if not statement.startswith(("SELECT", "UPDATE", "DELETE", "INSERT")) or "LIMIT" in statement:
            continue
        many = isinstance(parameters, list)
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters[0] if many else parameters).fetchall()
        if any(whole.match(line[3]) for line in plan):
            found.add(statement)
    connection.close()
    return found


def answer(bank: Bank) -> None:
    (hit,) = bank.nearest("default", KeyKind.INPUT, X, 1)
    bank.prompt("default", hit.memory_id)
    use = use_of("default", hit.memory_id)
    bank.record_use(use)
    bank.settle_use("default", use.id, UseOutcome.FIXED)
    bank.note_feedback("default", use.id, Feedback.WRONG)
    bank.posteriors("default", [("default", hit.memory_id)])


def learn_one(bank: Bank) -> None:
    learner(bank)("another", X)
    assert bank.jobs.claim("idle worker", lease_seconds=60, model_id=MODEL.id) is None
    assert bank.jobs.idle(MODEL.id)


def keep_up(bank: Bank) -> None:
    maintain(bank, None, Rules())


def open_again(bank: Bank) -> None:
    bank.bind("default", MODEL)
    bank.namespaces()


@pytest.mark.parametrize("work", [answer, learn_one, open_again, keep_up])
def test_no_whole_table_is_read(tmp_path: Path, work: Callable[[Bank], None]) -> None:
    file = tmp_path / "bank.sqlite"
    rule = HarmRule(probability=0.9, uses=1, weights=Weights())
    bank = Bank(Database.open(f"sqlite:///{file}"), LocalTensors(tmp_path / "tensors"), index="exact", harm=rule)
    bank.bind("default", MODEL)
    learn = learner(bank)
    for n in range(5):
        learn(f"q{n}", X)
    bank.nearest("default", KeyKind.INPUT, X, 1)  # from here on the index of this process has all keys
    with statements(bank.database) as told:
        work(bank)
    assert told
    assert reading(TABLE, file, told) == set()
    assert work is keep_up or reading(NAMESPACE, file, told) == set()
    with statements(bank.database) as told:
        bank.memory_counts()
    assert reading(TABLE, file, told), "this one does, so it would be seen"
    with statements(bank.database) as told:
        bank.events("default")
    assert reading(NAMESPACE, file, told), "this one does too"
    bank.close()
