"""What a job becomes: the changes of one job row, within a transaction that holds it. Decides who, never when."""

from __future__ import annotations

from datetime import datetime

from elm_agent.records import JobState
from elm_agent.storage.sql.schema import JobRow


def requeue(row: JobRow, reason: str | None, now: datetime, *, run_after: datetime) -> None:
    """The job waits for a worker again, from ``run_after`` on."""
    row.state = JobState.QUEUED
    row.run_after = run_after
    _let_go(row, reason, now)


def end(row: JobRow, state: JobState, reason: str | None, now: datetime) -> None:
    """The job is over, as ``state`` says."""
    row.state = state
    _let_go(row, reason, now)


def _let_go(row: JobRow, reason: str | None, now: datetime) -> None:
    row.owner = None
    row.lease_until = None
    row.cancel_requested = False
    row.reason = reason
    row.updated_at = now


def finish(row: JobRow, memory_id: str, now: datetime) -> None:
    """The job is done; for the transaction that publishes."""
    end(row, JobState.DONE, None, now)
    row.memory_id = memory_id


def end_of_abandoned(row: JobRow) -> tuple[JobState, str] | None:
    """How a job whose worker is gone ends, and why; None when it is to run again."""
    if row.cancel_requested:
        return JobState.CANCELLED, "its worker stopped after it was asked to cancel"
    if row.attempts >= row.max_attempts:
        return (
            JobState.FAILED,
            f"its worker stopped without a word, {row.attempts} of {row.max_attempts} attempts used",
        )
    return None


def take_back(row: JobRow, now: datetime) -> JobState:
    """Take a job from a worker that is gone for good, and return what it is now."""
    ended = end_of_abandoned(row)
    if ended is not None:
        end(row, *ended, now)
    else:
        requeue(row, "its worker stopped without a word", now, run_after=now)
    return JobState(row.state)


def give_up(row: JobRow, reason: str, now: datetime) -> None:
    """The job counts as failed, for ``reason``; it can be retried."""
    end(row, JobState.FAILED, reason, now)
    row.memory_id = None
