"""What can be wrong inside the SQL database, and how such rows are put right. Knows nothing of files or indexes.

Foreign keys and transactions make most of this impossible; a restored dump, a hand on the database or a disk
that lied do not. Every check is one statement, so a live bank never looks broken half-way through a change.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, exists, inspect, or_, select, text
from sqlalchemy.orm import Session

from elm_agent.records import JobState
from elm_agent.storage.health.findings import Finding, FindingKind
from elm_agent.storage.queue.states import give_up, take_back
from elm_agent.storage.sql.schema import (
    Base,
    EpisodeRow,
    EventRow,
    JobRow,
    KeyRow,
    MemoryRow,
    OutboxRow,
    TombstoneRow,
    UseRow,
)

_SHOWN = 20  # lines of SQLite's own check; more say no more


def damaged_pages(session: Session) -> Iterator[Finding]:
    """What SQLite finds wrong with its own file. PostgreSQL checks its pages as it reads them."""
    if session.get_bind().dialect.name != "sqlite":
        return
    for (line,) in session.execute(text(f"PRAGMA integrity_check({_SHOWN})")):
        if line != "ok":
            yield Finding(FindingKind.DAMAGED_DATABASE, "integrity_check", None, str(line).replace("\n", " ")[:300])


def missing_columns(session: Session) -> Iterator[Finding]:
    """Tables and columns of the newest schema that the database lacks, though it says that it has that schema."""
    there = inspect(session.connection())
    tables = set(there.get_table_names())
    for name, table in Base.metadata.tables.items():
        columns = {column["name"] for column in there.get_columns(name)} if name in tables else set()
        if missing := sorted({column.name for column in table.columns} - columns):
            problem = (
                f"table {name} has no column {', '.join(missing)}: a migration was half applied, or undone by hand"
            )
            yield Finding(FindingKind.OTHER_SCHEMA, name, None, problem)


def stuck_jobs(session: Session, *, before: datetime, now: datetime, repair: bool) -> Iterator[Finding]:
    """Running jobs whose lease ended before ``before``; a worker that takes jobs would have taken them over."""
    late = or_(JobRow.lease_until.is_(None), JobRow.lease_until < before)
    query = select(JobRow).where(JobRow.state == JobState.RUNNING, late)
    for job in session.scalars(query.with_for_update(skip_locked=True) if repair else query).all():
        ended = "never began" if job.lease_until is None else f"ended {job.lease_until:%Y-%m-%d %H:%M:%S} UTC"
        problem = f"running by {job.owner}, its lease {ended}"
        action = f"now {take_back(job, now)}" if repair else None
        yield Finding(FindingKind.STUCK_JOB, job.id, job.namespace, problem, action)


def jobs_without_memory(session: Session, *, now: datetime, repair: bool) -> Iterator[Finding]:
    """Jobs that are done and whose memory is gone."""
    memory = exists().where(MemoryRow.namespace == JobRow.namespace, MemoryRow.id == JobRow.memory_id)
    for job in session.scalars(select(JobRow).where(JobRow.state == JobState.DONE, ~memory)).all():
        problem = f"the job is done, its memory {job.memory_id} is gone"
        if repair:
            give_up(job, problem, now)
        action = f"now failed: `elm-agent jobs retry {job.id}` learns it again" if repair else None
        yield Finding(FindingKind.DANGLING_ROW, job.id, job.namespace, problem, action)


def rows_without_memory(session: Session, *, repair: bool) -> Iterator[Finding]:
    """Keys, uses, index work and episodes of memories that are gone. They say nothing any more."""
    of = MemoryRow.namespace
    purged = exists().where(
        TombstoneRow.namespace == OutboxRow.namespace, TombstoneRow.memory_id == OutboxRow.memory_id
    )
    told = ~purged | OutboxRow.present  # a deletion that an index has still to hear of
    key = (of == KeyRow.namespace) & (MemoryRow.id == KeyRow.memory_id)
    use = (of == UseRow.memory_namespace) & (MemoryRow.id == UseRow.memory_id)
    work = (of == OutboxRow.namespace) & (MemoryRow.id == OutboxRow.memory_id)
    episode = (of == EpisodeRow.namespace) & (MemoryRow.episode_id == EpisodeRow.id)
    yield from _without(session, "a key", KeyRow, KeyRow.memory_id, key, repair)
    yield from _without(session, "a use", UseRow, UseRow.id, use, repair)
    yield from _without(session, "index work", OutboxRow, OutboxRow.memory_id, work, repair, told)
    yield from _without(session, "an episode", EpisodeRow, EpisodeRow.id, episode, repair)


def _without(
    session: Session,
    what: str,
    table: Any,
    subject: Any,
    memory: ColumnElement[bool],
    repair: bool,
    *more: ColumnElement[bool],
) -> Iterator[Finding]:
    for row in session.scalars(select(table).where(~exists().where(memory), *more)).all():
        problem = f"{what} of a memory that is gone"
        if repair:
            session.delete(row)
        name = str(getattr(row, subject.key))
        yield Finding(FindingKind.DANGLING_ROW, name, row.namespace, problem, "deleted" if repair else None)


def notes_of_purged(session: Session, *, repair: bool) -> Iterator[Finding]:
    """Free text about memories that were purged since."""
    of = (EventRow.namespace == TombstoneRow.namespace) & (EventRow.memory_id == TombstoneRow.memory_id)
    older = (EventRow.revision < TombstoneRow.revision) & (EventRow.note.is_not(None) | EventRow.salt.is_not(None))
    for event in session.scalars(select(EventRow).join(TombstoneRow, of).where(older)).all():
        if repair:
            event.note = event.salt = None
        problem = f"event {event.revision} still has a note about a memory that was purged"
        action = "the note was erased" if repair else None
        yield Finding(FindingKind.UNPURGED, str(event.memory_id), event.namespace, problem, action)


def erased_notes(session: Session) -> Iterator[Finding]:
    """Notes that were erased, though the memory was not purged. The chain allows it, for the sake of purges."""
    of = (TombstoneRow.namespace == EventRow.namespace) & (TombstoneRow.memory_id == EventRow.memory_id)
    erased = EventRow.note_digest.is_not(None) & EventRow.note.is_(None)
    query = select(EventRow.namespace, EventRow.revision).where(erased, ~exists().where(of))
    for namespace, revision in session.execute(query.order_by(EventRow.namespace, EventRow.revision)):
        problem = f"event {revision}: its note was erased, and no purge did that"
        yield Finding(FindingKind.BROKEN_CHAIN, str(revision), namespace, problem)


def future_events(session: Session, *, after: datetime) -> Iterator[Finding]:
    """Events with a time after ``after``: the clock of a machine is ahead, or this one's was set back."""
    query = select(EventRow.namespace, EventRow.revision, EventRow.created_at).where(EventRow.created_at > after)
    for namespace, revision, created_at in session.execute(query.order_by(EventRow.namespace, EventRow.revision)):
        problem = f"event {revision} is from {created_at:%Y-%m-%d %H:%M:%S} UTC, which is to come: check the clocks"
        yield Finding(FindingKind.FUTURE_EVENT, str(revision), namespace, problem)
