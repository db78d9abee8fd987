"""The life of a job, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from bank_helpers import MODEL, RECIPE, trained, unit

from elm_agent.errors import InputError, LeaseLost, NotFound
from elm_agent.records import JobRecord, JobState
from elm_agent.storage.bank import Bank
from elm_agent.storage.queue.jobs import JobQueue, Lease


@pytest.fixture
def jobs(bank: Bank) -> JobQueue:
    return bank.jobs


def queue(jobs: JobQueue, question: str, *, priority: int = 0, max_attempts: int = 3) -> JobRecord:
    job, _ = jobs.enqueue(
        "default",
        question,
        task="math",
        model_id=MODEL.id,
        recipe=RECIPE,
        priority=priority,
        max_attempts=max_attempts,
    )
    return job


def claim(jobs: JobQueue, *, seconds: float = 60) -> Lease:
    lease = jobs.claim("worker", lease_seconds=seconds)
    assert lease is not None
    return lease


def test_a_queued_job_says_everything(jobs: JobQueue) -> None:
    job, created = jobs.enqueue("default", " q ", task="math", model_id=MODEL.id, recipe=RECIPE, priority=2)
    assert created
    assert jobs.get(job.namespace, job.id) == job
    assert (job.state, job.question, job.recipe, job.priority, job.attempts, job.fence, job.max_attempts) == (
        JobState.QUEUED,
        " q ",
        RECIPE,
        2,
        0,
        0,
        3,
    )
    assert (job.owner, job.lease_until, job.memory_id, job.progress) == (None, None, None, {})


def test_the_same_experience_is_one_job(bank: Bank, jobs: JobQueue) -> None:
    first = queue(jobs, "What is 7 times 8?")
    again, created = jobs.enqueue(
        "default", "  What is 7\ttimes 8? ", task="math", model_id=MODEL.id, recipe=RECIPE, priority=9
    )
    assert (again, created) == (first, False)
    bank.bind("other", MODEL)
    others = [
        {"namespace": "other"},
        {"question": "What is 7 times 9?"},
        {"model_id": "sha256:m"},
        {"recipe": dataclasses.replace(RECIPE, seed=1)},
    ]
    usual = {
        "namespace": "default",
        "question": first.question,
        "task": "math",
        "model_id": MODEL.id,
        "recipe": RECIPE,
    }
    assert all(jobs.enqueue(**usual | other)[1] for other in others)  # type: ignore[arg-type]


def test_unusable_jobs_are_refused(jobs: JobQueue) -> None:
    with pytest.raises(InputError, match="blank"):
        queue(jobs, " \n")
    with pytest.raises(NotFound, match="'nowhere' is not in this bank"):
        jobs.enqueue("nowhere", "q", task="math", model_id=MODEL.id, recipe=RECIPE)
    with pytest.raises(NotFound, match="no job 'job_x'"):
        jobs.get("default", "job_x")


def test_the_highest_priority_comes_first_then_the_oldest(jobs: JobQueue) -> None:
    for question, priority in (("a", 0), ("b", 0), ("c", 5)):
        queue(jobs, question, priority=priority)
    assert [claim(jobs).job.question for _ in range(3)] == ["c", "a", "b"]
    assert jobs.claim("worker", lease_seconds=60) is None
    assert [job.question for job in jobs.list("default", JobState.RUNNING, limit=2)] == ["c", "b"]
    assert jobs.list("other") == []


def test_only_jobs_for_my_model(jobs: JobQueue) -> None:
    queue(jobs, "q")
    assert jobs.claim("worker", lease_seconds=60, model_id="sha256:other") is None
    assert jobs.claim("worker", lease_seconds=60, model_id=MODEL.id) is not None


def test_a_heartbeat_lengthens_the_lease_and_keeps_progress(jobs: JobQueue) -> None:
    queue(jobs, "q")
    lease = claim(jobs)
    before = lease.job.lease_until
    assert before is not None
    assert jobs.heartbeat(lease, lease_seconds=600, progress={"step": 3}) is False
    assert jobs.heartbeat(lease, lease_seconds=600) is False
    job = jobs.get(lease.job.namespace, lease.job.id)
    assert job.progress == {"step": 3}
    assert job.lease_until is not None
    assert job.lease_until - before > timedelta(seconds=500)


def test_an_expired_lease_is_taken_over_and_the_old_holder_is_refused(jobs: JobQueue) -> None:
    queue(jobs, "q")
    old = claim(jobs, seconds=-1)
    new = claim(jobs)
    assert (new.job.id, new.fence, new.job.attempts) == (old.job.id, old.fence + 1, 2)
    for act in (
        lambda: jobs.heartbeat(old, lease_seconds=60),
        lambda: jobs.release(old, "x"),
        lambda: jobs.fail(old, "x", backoff_seconds=0),
        lambda: jobs.cancelled(old, "x"),
    ):
        with pytest.raises(LeaseLost, match=r"no longer held by worker \(fence 1\): it is running, fence 2"):
            act()
    assert jobs.heartbeat(new, lease_seconds=60) is False


def test_an_expired_lease_that_nobody_took_still_counts(jobs: JobQueue) -> None:
    queue(jobs, "q")
    lease = claim(jobs, seconds=-1)
    assert jobs.heartbeat(lease, lease_seconds=60) is False
    assert jobs.claim("other", lease_seconds=60) is None


def test_a_job_that_kills_its_workers_ends(jobs: JobQueue) -> None:
    job = queue(jobs, "q", max_attempts=2)
    queue(jobs, "next", priority=-1)
    claim(jobs, seconds=-1)
    claim(jobs, seconds=-1)
    assert claim(jobs).job.question == "next"
    ended = jobs.get(job.namespace, job.id)
    assert ended.state == JobState.FAILED
    assert ended.reason == "its worker stopped without a word, 2 of 2 attempts used"


def test_release_gives_the_attempt_back(jobs: JobQueue) -> None:
    queue(jobs, "q", max_attempts=1)
    jobs.release(claim(jobs), "Ctrl-C")
    lease = claim(jobs)
    assert (lease.job.attempts, lease.fence, lease.job.reason) == (1, 2, "Ctrl-C")


def test_failures_wait_longer_each_time_and_end(jobs: JobQueue) -> None:
    job = queue(jobs, "q")
    failed = jobs.fail(claim(jobs), "no memory", backoff_seconds=100)
    assert (failed.state, failed.reason) == (JobState.QUEUED, "no memory")
    assert timedelta(seconds=99) < failed.run_after - failed.updated_at <= timedelta(seconds=100)
    assert jobs.claim("worker", lease_seconds=60) is None
    jobs.cancel(job.namespace, job.id)
    jobs.retry(job.namespace, job.id)
    for attempt in (1, 2):
        failed = jobs.fail(claim(jobs), "no memory", backoff_seconds=0)
        assert (failed.state, failed.attempts) == (JobState.QUEUED, attempt)
    failed = jobs.fail(claim(jobs), "no memory", backoff_seconds=0)
    assert (failed.state, failed.attempts, failed.owner) == (JobState.FAILED, 3, None)


def test_the_second_pause_is_twice_the_first(jobs: JobQueue) -> None:
    queue(jobs, "q")
    jobs.fail(claim(jobs), "x", backoff_seconds=0)
    failed = jobs.fail(claim(jobs), "x", backoff_seconds=50)
    assert failed.run_after - failed.updated_at == timedelta(seconds=100)


def test_the_steps_of_what_failed_are_kept_beside_its_progress(jobs: JobQueue) -> None:
    queue(jobs, "q")
    lease = claim(jobs)
    jobs.heartbeat(lease, lease_seconds=60, progress={"step": 1})
    (step,) = trained(unit(1, 0, 0, 0)).curve
    step = dataclasses.replace(step, majority_answer="56\x00")
    failed = jobs.fail(lease, "loss nan", backoff_seconds=0, retry=False, curve=[step])
    assert (failed.state, failed.progress["step"], len(failed.progress["curve"])) == (JobState.FAILED, 1, 1)
    assert failed.progress["curve"][0]["loss"] == step.loss
    assert jobs.get("default", failed.id).progress["curve"][0]["vote_share"] == step.vote_share


def test_a_hopeless_job_fails_at_once(jobs: JobQueue) -> None:
    queue(jobs, "q")
    assert jobs.fail(claim(jobs), "too long", backoff_seconds=0, retry=False).state == JobState.FAILED


def test_cancel_and_retry(jobs: JobQueue) -> None:
    job = queue(jobs, "q")
    with pytest.raises(InputError, match="is queued: only a failed or cancelled job"):
        jobs.retry(job.namespace, job.id)
    assert jobs.cancel(job.namespace, job.id).state == JobState.CANCELLED
    assert jobs.claim("worker", lease_seconds=60) is None
    assert jobs.cancel(job.namespace, job.id).state == JobState.CANCELLED
    assert jobs.retry(job.namespace, job.id).state == JobState.QUEUED
    lease = claim(jobs)
    assert jobs.cancel(job.namespace, job.id).cancel_requested
    assert jobs.heartbeat(lease, lease_seconds=60) is True
    jobs.cancelled(lease, "asked to stop at step 3")
    ended = jobs.get(job.namespace, job.id)
    assert (ended.state, ended.reason, ended.cancel_requested) == (
        JobState.CANCELLED,
        "asked to stop at step 3",
        False,
    )


@pytest.mark.parametrize("how", ["release", "fail", "abandon"])
def test_a_cancelled_job_does_not_run_again(jobs: JobQueue, how: str) -> None:
    job = queue(jobs, "q")
    lease = claim(jobs, seconds=-1)
    jobs.cancel(job.namespace, job.id)
    if how == "release":
        jobs.release(lease, "Ctrl-C")
    elif how == "fail":
        jobs.fail(lease, "x", backoff_seconds=0)
    assert jobs.claim("worker", lease_seconds=60) is None
    assert jobs.get(job.namespace, job.id).state == JobState.CANCELLED


def test_counts_name_every_state(jobs: JobQueue) -> None:
    queue(jobs, "a")
    queue(jobs, "b")
    claim(jobs)
    assert jobs.counts() == dict.fromkeys(JobState, 0) | {JobState.QUEUED: 1, JobState.RUNNING: 1}


def test_only_jobs_of_my_tasks(jobs: JobQueue) -> None:
    job = queue(jobs, "q")
    assert jobs.claim("worker", lease_seconds=60, tasks={"text", "mine"}) is None
    assert jobs.idle(MODEL.id, {"text"})
    assert not jobs.idle(MODEL.id, {"math"})
    assert (jobs.depth(MODEL.id), jobs.depth(MODEL.id, {"text"}), jobs.depth("sha256:other")) == (1, 0, 0)
    lease = jobs.claim("worker", lease_seconds=60, tasks={"math"})
    assert lease is not None
    assert lease.job.id == job.id
    assert jobs.depth(MODEL.id) == 1
    jobs.fail(lease, "x", backoff_seconds=1000)
    assert jobs.depth(MODEL.id) == 0  # it waits, and nobody can work on it yet


# --- a clock that goes back ------------------------------------------------------------------------------------

A_YEAR = timedelta(days=365)


@pytest.fixture
def clock(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> list[timedelta]:
    """How far the database's clock is ahead; set its only item."""
    ahead, now = [timedelta(0)], bank.database.now
    monkeypatch.setattr(bank.database, "now", lambda session: now(session) + ahead[0])
    return ahead


def test_a_dead_workers_job_is_free_one_lease_after_the_clock_went_back(
    jobs: JobQueue, clock: list[timedelta]
) -> None:
    clock[0] = A_YEAR
    queue(jobs, "q")
    dead = claim(jobs, seconds=60)
    clock[0] = timedelta(0)
    assert jobs.claim("worker", lease_seconds=60) is None  # it may live: it has a whole lease to say so
    assert jobs.get(dead.job.namespace, dead.job.id).lease_until == jobs.get(
        dead.job.namespace, dead.job.id
    ).updated_at + timedelta(seconds=60)
    clock[0] = timedelta(seconds=61)
    assert claim(jobs).job.id == dead.job.id


def test_a_live_worker_keeps_its_job_when_the_clock_goes_back(jobs: JobQueue, clock: list[timedelta]) -> None:
    clock[0] = A_YEAR
    queue(jobs, "q")
    lease = claim(jobs)
    clock[0] = timedelta(0)
    assert jobs.claim("other", lease_seconds=60) is None
    assert jobs.heartbeat(lease, lease_seconds=60) is False
    clock[0] = timedelta(seconds=59)
    assert jobs.claim("other", lease_seconds=60) is None
    jobs.release(lease, "done with it")


def test_a_queued_job_is_due_although_the_clock_went_back(jobs: JobQueue, clock: list[timedelta]) -> None:
    clock[0] = A_YEAR
    queue(jobs, "at once")
    later = queue(jobs, "after a pause")
    jobs.cancel("default", queue(jobs, "ended").id)
    first = claim(jobs)
    assert jobs.fail(first, "x", backoff_seconds=100).state == JobState.QUEUED
    clock[0] = timedelta(0)
    assert claim(jobs, seconds=600).job.id == later.id
    clock[0] = timedelta(seconds=99)
    assert jobs.claim("worker", lease_seconds=60) is None
    clock[0] = timedelta(seconds=101)
    assert claim(jobs).job.id == first.job.id
