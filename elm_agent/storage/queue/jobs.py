"""The queue of background jobs: one row a job, durable, the same on SQLite and PostgreSQL. Does no work itself.

A worker holds a job by a lease (until when, by the database's clock) and a fence (a number that grows with
every claim). A worker that stops is replaced when its lease runs out; what it still writes carries an old
fence and is refused.
"""

from __future__ import annotations

import builtins
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, func, literal, or_, select, tuple_
from sqlalchemy.orm import Session

from elm_agent.errors import InputError, LeaseLost, NotFound
from elm_agent.records import JobRecord, JobState, Recipe, StepRecord, idempotency_key, new_id
from elm_agent.storage.ledger.changes import check_still_here
from elm_agent.storage.queue.states import end, end_of_abandoned, requeue
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.faults import Refused
from elm_agent.storage.sql.rows import job_record, opened_json, sealed_json
from elm_agent.storage.sql.schema import JobRow
from elm_agent.storage.vault.base import PlainVault, Vault
from elm_agent.storage.vault.guard import refuse_readable

_LONGEST_BACKOFF = 86_400.0  # seconds
_CLOCK_SLACK = timedelta(seconds=1)  # a row this far ahead of the clock was written before the clock went back
_TURN = (JobRow.priority.desc(), JobRow.created_at, JobRow.id)
_UNFINISHED_STATES = (JobState.QUEUED.value, JobState.RUNNING.value)
_UNFINISHED = JobRow.state.in_(_UNFINISHED_STATES)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on ``job`` until it runs out or the fence is passed."""

    job: JobRecord
    owner: str
    fence: int


class JobQueue:
    """See the module. Every method is one transaction; any thread and process may call any of them."""

    def __init__(self, database: Database, vault: Vault | None = None) -> None:
        self._database = database
        self._vault = vault or PlainVault()

    # --- the agent's side -----------------------------------------------------------------------------

    def enqueue(
        self,
        namespace: str,
        question: str,
        *,
        task: str,
        model_id: str,
        recipe: Recipe,
        priority: int = 0,
        max_attempts: int = 3,
        subject: str | None = None,
    ) -> tuple[JobRecord, bool]:
        """The job that learns from ``question``, and whether it is new.

        The same experience (namespace, question, model, recipe) is the same job, in whatever state it is.
        ``subject``: whose experience it is, see ``Bank.forget_subject``; the first one to ask counts.

        Raises:
            InputError: the question is blank, or the recipe is for studies alone.
            NotFound: the namespace is not in this bank; ``Bank.bind`` makes it.
            BankMoved: the namespace went to another bank.
            VaultLocked: it was encrypted after the bank had been opened without a key.
        """
        if not question.strip():
            raise InputError("the question is blank: expected some text to learn from")
        refuse_offline(recipe)
        vault = self._vault
        plain = idempotency_key(namespace, question, model_id, recipe.id)
        key = vault.blind(namespace, plain)
        values = {
            "namespace": namespace,
            "id": new_id("job"),
            "state": JobState.QUEUED.value,
            "question": vault.seal(namespace, question),
            "subject": None if subject is None else vault.blind(namespace, subject),
            "task": task,
            "priority": priority,
            "attempts": 0,
            "max_attempts": max_attempts,
            "idempotency_key": key,
            "model_id": model_id,
            "recipe": asdict(recipe),
            "progress": {},
            "cancel_requested": False,
            "fence": 0,
        }
        try:
            with self._database.write() as session:
                now = self._database.now(session)
                times = {"run_after": now, "created_at": now, "updated_at": now}
                # what was queued before encryption was switched on bears the plain name, until it is rotated
                created = not (key != plain and _named(session, namespace, plain)) and self._database.add_once(
                    session, JobRow, values | times, ["namespace", "idempotency_key"]
                )
                check_still_here(session, namespace)
                refuse_readable(session, vault, namespace)
                same = _named(session, namespace, key) or _named(session, namespace, plain)
                assert same is not None
                return job_record(same, vault), created
        except Refused:
            raise NotFound(f"namespace {namespace[:100]!r} is not in this bank: bind it to a model first") from None

    def cancel(self, namespace: str, job_id: str) -> JobRecord:
        """A queued job is cancelled at once, a running one is asked to stop; an ended one stays as it is.

        Raises ``NotFound``, also for a job of another namespace.
        """
        with self._locked(namespace, job_id) as (row, now):
            if row.state == JobState.QUEUED:
                end(row, JobState.CANCELLED, "cancelled before it ran", now)
            elif row.state == JobState.RUNNING:
                row.cancel_requested = True
                row.updated_at = now
            return job_record(row, self._vault)

    def retry(self, namespace: str, job_id: str) -> JobRecord:
        """Queue a failed or cancelled job again, its attempts counted anew.

        Raises ``InputError`` for one in another state, ``NotFound`` as ``get``.
        """
        with self._locked(namespace, job_id) as (row, now):
            if row.state not in (JobState.FAILED, JobState.CANCELLED):
                raise InputError(f"job {job_id} is {row.state}: only a failed or cancelled job can be retried")
            requeue(row, None, now, run_after=now)
            row.attempts = 0
            row.progress = {}
            return job_record(row, self._vault)

    def get(self, namespace: str, job_id: str) -> JobRecord:
        """Raises ``NotFound``, also for a job of another namespace."""
        with self._database.read() as session:
            return job_record(_found(session, namespace, job_id), self._vault)

    def list(
        self,
        namespace: str | None = None,
        state: JobState | None = None,
        limit: int | None = None,
        *,
        after: tuple[datetime, str] | None = None,
    ) -> builtins.list[JobRecord]:
        """Newest first. ``namespace=None``: of all namespaces, for whoever runs the bank.

        ``after``: only what comes after the job with this time of creation and id: the next page.
        """
        query = select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit)
        if after is not None:
            last = tuple_(literal(after[0], JobRow.created_at.type), literal(after[1]))
            query = query.where(tuple_(JobRow.created_at, JobRow.id) < last)
        if namespace is not None:
            query = query.where(JobRow.namespace == namespace)
        if state is not None:
            query = query.where(JobRow.state == state)
        with self._database.read() as session:
            return [job_record(row, self._vault) for row in session.scalars(query)]

    def idle(self, model_id: str, tasks: Collection[str] | None = None) -> bool:
        """Whether no job for this model is queued or running, in any namespace. Cheap: it is asked often.

        ``tasks``: only jobs of these tasks count.
        """
        first = select(JobRow.id).where(*_for(model_id, tasks)).order_by(*_TURN).limit(1)  # ordered as an index is
        with self._database.read() as session:
            found = (session.scalar(first.where(JobRow.state == state)) for state in _UNFINISHED_STATES)
            return all(job_id is None for job_id in found)

    def depth(self, model_id: str, tasks: Collection[str] | None = None) -> int:
        """How many jobs there are to work on: running, or queued and due. ``tasks``: see ``idle``."""
        with self._database.read() as session:
            due = or_(JobRow.state == JobState.RUNNING, JobRow.run_after <= self._database.now(session))
            query = select(func.count()).select_from(JobRow).where(_UNFINISHED, due, *_for(model_id, tasks))
            return session.execute(query).scalar_one()

    def unfinished(self, namespace: str) -> dict[JobState, int]:
        """How many jobs of the namespace are queued and running."""
        query = select(JobRow.state, func.count()).where(_UNFINISHED, JobRow.namespace == namespace)
        with self._database.read() as session:
            rows = session.execute(query.group_by(JobRow.state)).all()
        found = {JobState(state): count for state, count in rows}
        return {state: found.get(state, 0) for state in (JobState.QUEUED, JobState.RUNNING)}

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state, in all namespaces."""
        with self._database.read() as session:
            rows = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state)).all()
        return dict.fromkeys(JobState, 0) | {JobState(state): count for state, count in rows}

    # --- the worker's side ----------------------------------------------------------------------------

    def claim(
        self,
        owner: str,
        *,
        lease_seconds: float,
        model_id: str | None = None,
        tasks: Collection[str] | None = None,
    ) -> Lease | None:
        """The next job for ``owner``, or None: highest priority, then oldest; due, or left by a dead worker.

        ``model_id``, ``tasks``: only jobs for this model and of these tasks, all others are left to others.
        A dead worker's job whose attempts are used up becomes failed. Raises ``BankMoved``, ``VaultLocked``.
        """
        wanted = _for(model_id, tasks)
        with self._database.write() as session:
            now = self._database.now(session)
            while (row := _next(session, now, wanted)) is not None:
                if row.state == JobState.RUNNING and (ended := end_of_abandoned(row)):
                    end(row, *ended, now)
                    session.flush()
                    continue
                row.state = JobState.RUNNING
                row.owner = owner
                row.attempts += 1
                row.fence += 1
                row.lease_until = now + timedelta(seconds=lease_seconds)
                row.updated_at = now
                session.flush()
                check_still_here(session, row.namespace)
                refuse_readable(session, self._vault, row.namespace)  # what it learns could not be published
                return Lease(job_record(row, self._vault), owner, row.fence)
        return None

    def heartbeat(self, lease: Lease, *, lease_seconds: float, progress: dict[str, Any] | None = None) -> bool:
        """Lengthen the lease; True when somebody asked the job to stop. Raises ``LeaseLost``, ``VaultLocked``."""
        with self._held(lease) as (row, now):
            row.lease_until = now + timedelta(seconds=lease_seconds)
            row.updated_at = now
            if progress is not None:
                row.progress = sealed_json(self._vault, row.namespace, progress)
            return row.cancel_requested

    def release(self, lease: Lease, reason: str) -> None:
        """Give the job back, for example at Ctrl-C; this attempt does not count. Raises ``LeaseLost``."""
        with self._held(lease) as (row, now):
            row.attempts -= 1
            reason = self._vault.seal(row.namespace, reason)
            if row.cancel_requested:
                end(row, JobState.CANCELLED, reason, now)
            else:
                requeue(row, reason, now, run_after=now)

    def fail(
        self,
        lease: Lease,
        reason: str,
        *,
        backoff_seconds: float,
        retry: bool = True,
        curve: Sequence[StepRecord] = (),
    ) -> JobRecord:
        """This attempt failed: queue the job again after a pause that doubles, or end it. Raises ``LeaseLost``.

        ``retry=False``: another attempt would fail the same way. ``curve``: the steps it had done, kept in the
        job's ``progress``.
        """
        with self._held(lease) as (row, now):
            if curve:
                done = opened_json(self._vault, row.namespace, row.progress)
                kept = {**done, "curve": [asdict(step) for step in curve]}
                row.progress = sealed_json(self._vault, row.namespace, kept)
            reason = self._vault.seal(row.namespace, reason)
            if row.cancel_requested:
                end(row, JobState.CANCELLED, reason, now)
            elif not retry or row.attempts >= row.max_attempts:
                end(row, JobState.FAILED, reason, now)
            else:
                pause = min(backoff_seconds * 2.0 ** (row.attempts - 1), _LONGEST_BACKOFF)
                requeue(row, reason, now, run_after=now + timedelta(seconds=pause))
            return job_record(row, self._vault)

    def cancelled(self, lease: Lease, reason: str) -> None:
        """The job stopped because somebody asked. Raises ``LeaseLost``."""
        with self._held(lease) as (row, now):
            end(row, JobState.CANCELLED, self._vault.seal(row.namespace, reason), now)

    @contextmanager
    def _held(self, lease: Lease) -> Iterator[tuple[JobRow, datetime]]:
        with self._database.write() as session:
            row = fenced(session, lease)
            refuse_readable(session, self._vault, row.namespace)
            yield row, self._database.now(session)

    @contextmanager
    def _locked(self, namespace: str, job_id: str) -> Iterator[tuple[JobRow, datetime]]:
        with self._database.write() as session:
            yield _found(session, namespace, job_id, lock=True), self._database.now(session)


def refuse_offline(recipe: Recipe) -> None:
    """Raise ``InputError`` for what a bank never keeps: memories that somebody's answers went into."""
    if recipe.offline:
        raise InputError(
            f"a memory with objective {recipe.objective!r} and parameterisation {recipe.parameterisation!r} is for "
            "studies and never kept in a bank: train it with `GrpoTrainer`, or use the objective 'grpo_majority' and "
            "the parameterisation 'soft_prompt'"
        )


def _for(model_id: str | None, tasks: Collection[str] | None) -> list[Any]:
    wanted: list[Any] = [] if model_id is None else [JobRow.model_id == model_id]
    return wanted if tasks is None else [*wanted, JobRow.task.in_(tasks)]


def _next(session: Session, now: datetime, wanted: list[Any]) -> JobRow | None:
    """The job to take, locked. Only when there is none are rows looked for that a turned-back clock has stranded."""
    row = _first(session, now, wanted)
    if row is None and _turn_back(session, now, wanted):
        row = _first(session, now, wanted)
    return row


def _first(session: Session, now: datetime, wanted: list[Any]) -> JobRow | None:
    """The first in turn of what is due and what a dead worker left: two queries, so that an index has the order."""
    due = (JobRow.state == JobState.QUEUED, JobRow.run_after <= now, *wanted)
    abandoned = (JobRow.state == JobState.RUNNING, JobRow.lease_until < now, *wanted)
    left = session.execute(
        select(JobRow.priority, JobRow.created_at, JobRow.id).where(*abandoned).order_by(*_TURN).limit(1)
    ).first()
    if left is None:
        return _lock_first(session, *due)
    # only what is taken is locked: others would take a locked row for one that is gone
    older = tuple_(JobRow.created_at, JobRow.id) < tuple_(left.created_at, left.id)
    sooner = or_(JobRow.priority > left.priority, and_(JobRow.priority == left.priority, older))
    return _lock_first(session, *due, sooner) or _lock_first(session, *abandoned) or _lock_first(session, *due)


def _lock_first(session: Session, *conditions: Any) -> JobRow | None:
    query = select(JobRow).where(*conditions).order_by(*_TURN).limit(1)
    return session.scalars(query.with_for_update(skip_locked=True)).first()


def _turn_back(session: Session, now: datetime, wanted: list[Any]) -> bool:
    """Move what was written in the clock's future to now, pauses and leases keeping their length; whether any was.

    A live worker has its whole lease to say so again; a dead one's job is free when that lease has run out.
    """
    stranded = select(JobRow).where(_UNFINISHED, JobRow.updated_at > now + _CLOCK_SLACK, *wanted)
    rows = session.scalars(stranded.with_for_update(skip_locked=True)).all()
    for row in rows:
        ahead = row.updated_at - now
        row.updated_at = now
        row.run_after -= ahead
        if row.lease_until is not None:
            row.lease_until -= ahead
    session.flush()
    return bool(rows)


def _named(session: Session, namespace: str, key: str) -> JobRow | None:
    """The job with that idempotency key."""
    same = select(JobRow).where(JobRow.namespace == namespace, JobRow.idempotency_key == key)
    return session.scalars(same).first()


def _found(session: Session, namespace: str, job_id: str, *, lock: bool = False) -> JobRow:
    query = select(JobRow).where(JobRow.namespace == namespace, JobRow.id == job_id)
    row = session.scalars(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound(f"no job {job_id[:80]!r} in namespace {namespace[:100]!r}: `elm-agent jobs list` shows them")
    return row


def fenced(session: Session, lease: Lease) -> JobRow:
    """The job's row, locked until the transaction ends. Raises ``LeaseLost`` unless ``lease`` still holds it."""
    query = select(JobRow).where(JobRow.namespace == lease.job.namespace, JobRow.id == lease.job.id)
    row = session.scalars(query.with_for_update()).first()
    if row is None or row.state != JobState.RUNNING or row.fence != lease.fence or row.owner != lease.owner:
        found = "it is gone" if row is None else f"it is {row.state}, fence {row.fence}, owner {row.owner}"
        raise LeaseLost(
            f"job {lease.job.id} is no longer held by {lease.owner} (fence {lease.fence}): {found}; "
            "what this worker made is discarded"
        )
    return row
