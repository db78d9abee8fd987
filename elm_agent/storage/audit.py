"""What can be wrong inside the SQL database, and how such rows are put right. Knows nothing of files or indexes.

Foreign keys and transactions make most of this impossible; a restored dump, a hand on the database or a disk
that lied do not. Every check is one statement, so a live bank never looks broken half-way through a change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, and_, exists, or_, select
from sqlalchemy.orm import Session

from elm_agent.records import JobState, KeyKind, MemoryState
from elm_agent.storage.jobstate import give_up, take_back
from elm_agent.storage.rows import unpack
from elm_agent.storage.schema import EpisodeRow, JobRow, KeyRow, MemoryRow, OutboxRow, UseRow


class FindingKind(StrEnum):
    """What can be wrong with a bank."""

    ORPHAN_TENSOR = "orphan_tensor"  # no memory names it, and none is about to
    TEMPORARY_FILE = "temporary_file"  # left by a writer that was killed
    MISSING_TENSOR = "missing_tensor"
    ALTERED_TENSOR = "altered_tensor"  # other bytes, shape or dtype than the record says
    UNREADABLE_TENSOR = "unreadable_tensor"  # the disk refuses; says nothing about the memory
    MISSING_ENTRY = "missing_entry"  # an active memory that the index does not have
    SURPLUS_ENTRY = "surplus_entry"  # an indexed id that is no active memory
    STUCK_JOB = "stuck_job"  # running, its lease long over
    DANGLING_ROW = "dangling_row"  # a row whose other half is gone


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. ``action``: what was done about it; None when nothing was."""

    kind: FindingKind
    subject: str  # id, digest or file name
    namespace: str | None
    problem: str
    action: str | None = None


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
    for what, table, subject, memory in (
        ("a key", KeyRow, KeyRow.memory_id, MemoryRow.id == KeyRow.memory_id),
        ("a use", UseRow, UseRow.id, MemoryRow.id == UseRow.memory_id),
        ("index work", OutboxRow, OutboxRow.memory_id, MemoryRow.id == OutboxRow.memory_id),
        ("an episode", EpisodeRow, EpisodeRow.id, MemoryRow.episode_id == EpisodeRow.id),
    ):
        yield from _without(session, what, table, subject, memory, repair)


def _without(
    session: Session, what: str, table: Any, subject: Any, memory: ColumnElement[bool], repair: bool
) -> Iterator[Finding]:
    orphaned = ~exists().where(MemoryRow.namespace == table.namespace, memory)
    for row in session.scalars(select(table).where(orphaned)).all():
        problem = f"{what} of a memory that is gone"
        if repair:
            session.delete(row)
        name = str(getattr(row, subject.key))
        yield Finding(FindingKind.DANGLING_ROW, name, row.namespace, problem, "deleted" if repair else None)


def incomplete_memories(session: Session) -> Iterator[Finding]:
    """Memories, not yet quarantined, without their episode or a usable input key."""
    usable = MemoryRow.state != MemoryState.QUARANTINED
    episode = exists().where(EpisodeRow.namespace == MemoryRow.namespace, EpisodeRow.id == MemoryRow.episode_id)
    of_memory = and_(KeyRow.namespace == MemoryRow.namespace, KeyRow.memory_id == MemoryRow.id)
    key = exists().where(of_memory, KeyRow.kind == KeyKind.INPUT.value)
    where = MemoryRow.namespace, MemoryRow.id
    for namespace, memory_id in session.execute(select(*where).where(usable, ~episode)).all():
        yield Finding(FindingKind.DANGLING_ROW, memory_id, namespace, "a memory without its episode")
    for namespace, memory_id in session.execute(select(*where).where(usable, ~key)).all():
        yield Finding(FindingKind.DANGLING_ROW, memory_id, namespace, "a memory without its input key")
    keys = select(*where, KeyRow.kind, KeyRow.width, KeyRow.vector).join(KeyRow, of_memory).where(usable)
    for namespace, memory_id, kind, width, vector in session.execute(keys):
        if not _is_unit(vector, width):
            problem = f"its {kind} key is not a unit vector of width {width}"
            yield Finding(FindingKind.DANGLING_ROW, memory_id, namespace, problem)


def _is_unit(data: bytes, width: int) -> bool:
    return len(data) == 4 * width and abs(float(np.linalg.norm(unpack(data))) - 1.0) < 1e-3
