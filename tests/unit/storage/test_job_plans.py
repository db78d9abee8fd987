"""Claiming a job and looking whether there is one do not grow with the queue: indexes answer, in the right order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import pytest
from bank_helpers import MODEL, RECIPE
from sqlalchemy import event, insert, text, update

from elm_agent.records import JobState, utcnow
from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import JobRow

JOBS = 3000
Statement = tuple[str, Any]


@pytest.fixture
def queued(bank: Bank) -> Bank:
    """Many jobs wait; statistics are there, as a server has them."""
    now = utcnow()
    same = {
        "namespace": "default", "state": "queued", "question": "why?", "task": "math", "attempts": 0,
        "max_attempts": 3, "model_id": MODEL.id, "recipe": asdict(RECIPE), "progress": {}, "cancel_requested": False,
        "fence": 0, "run_after": now, "created_at": now, "updated_at": now,
    }  # fmt: skip
    rows = [same | {"id": f"job_{n:06}", "idempotency_key": f"sha256:{n}", "priority": n % 3} for n in range(JOBS)]
    with bank.database.write() as session:
        session.execute(insert(JobRow), rows)
    if not bank.database.sqlite:
        with bank.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE jobs"))
    return bank


@contextmanager
def asked_of(database: Database) -> Iterator[list[Statement]]:
    """The SELECTs that go to the table of jobs."""
    statements: list[Statement] = []

    def hear(_connection: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
        if statement.startswith("SELECT") and "FROM jobs" in statement:
            statements.append((statement, values))

    event.listen(database.engine, "before_cursor_execute", hear)
    yield statements
    event.remove(database.engine, "before_cursor_execute", hear)


def plan(database: Database, statement: Statement) -> str:
    explain = "EXPLAIN QUERY PLAN" if database.sqlite else "EXPLAIN"
    with database.engine.connect() as connection:
        rows = connection.exec_driver_sql(f"{explain} {statement[0]}", statement[1]).all()
    return "\n".join(str(row[-1]) for row in rows)


def test_no_look_at_the_queue_reads_or_sorts_it(queued: Bank) -> None:
    jobs, mine = queued.jobs, {"model_id": MODEL.id, "tasks": {"math"}}
    with asked_of(queued.database) as statements:
        assert jobs.claim("w", lease_seconds=600, **mine) is not None  # type: ignore[arg-type]
        assert jobs.claim("w", lease_seconds=600) is not None
        assert jobs.claim("w", lease_seconds=600, model_id="sha256:other") is None
        assert not jobs.idle(MODEL.id, {"math"})
        assert jobs.idle("sha256:other")
        assert jobs.depth("sha256:other") == 0
    assert len(statements) == 2 + 2 + 3 + 1 + 2 + 1
    for statement in statements:
        made = plan(queued.database, statement)
        assert "SCAN jobs" not in made, made
        assert "Seq Scan" not in made, made
        if "queued" in str(statement[1]):  # few run: those may be sorted
            assert "TEMP B-TREE" not in made, made
            assert "Sort" not in made, made


def test_turns_are_kept_among_what_waits_and_what_dead_workers_left(bank: Bank) -> None:
    """Against the whole queue, sorted."""
    jobs, now = bank.jobs, utcnow()

    def queue(first: int, last: int) -> None:
        for n in range(first, last):
            jobs.enqueue("default", f"q{n}", task="math", model_id=MODEL.id, recipe=RECIPE, priority=n * 7 % 3)

    queue(0, 14)
    dead = [jobs.claim("dead", lease_seconds=600) for _ in range(10)]
    queue(14, 24)
    assert all(dead)
    with bank.database.write() as session:  # some of them are dead by now
        for lease in dead[::2]:
            mine = JobRow.id == lease.job.id  # type: ignore[union-attr]
            session.execute(update(JobRow).where(mine).values(lease_until=now - timedelta(hours=1)))
    live = {lease.job.id for lease in dead[1::2]}  # type: ignore[union-attr]
    waiting = [job for job in jobs.list("default") if job.id not in live]
    expected = sorted(waiting, key=lambda job: (-job.priority, job.created_at, job.id))
    claimed = []
    while (lease := jobs.claim("w", lease_seconds=600)) is not None:
        claimed.append(lease.job.id)
    assert claimed == [job.id for job in expected]
    assert jobs.counts()[JobState.RUNNING] == 24
