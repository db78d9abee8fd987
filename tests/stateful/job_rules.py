"""What may be done to jobs: queued, claimed, worked on, lost, given back, failed, cancelled, tried again."""

from __future__ import annotations

import pytest
from bank_beside_model import (
    MODEL,
    RECIPE,
    BankBesideModel,
    names,
    people,
    picks,
    questions,
    seeds,
    step,
    trained,
)
from bank_model import ATTEMPTS, Job, Memory
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition

from elm_agent.errors import InputError, LeaseLost, NotFound
from elm_agent.records import JobState, MemoryRecord, MemoryState
from elm_agent.storage.queue.jobs import Lease

_HOUR, _OVER = 3600.0, -1.0  # seconds of a lease

states = st.sampled_from((MemoryState.ACTIVE, MemoryState.CANDIDATE))


class JobRules(BankBesideModel):
    @initialize(some=st.lists(st.tuples(names, questions, people, seeds), max_size=6))
    def learn_a_little(self, some: list[tuple[str, str, str | None, int]]) -> None:
        """Not counted: so that there is something to begin with, whichever rules Hypothesis leaves out."""
        self.bind()
        for name, question, subject, seed in some:
            self._enqueue(name, question, subject, 0)
            self._claim(_HOUR, None)
            if seed % 3 and self.model.running():
                self._publish_one(0, seed, MemoryState.ACTIVE if seed % 2 else MemoryState.CANDIDATE)

    @step(name=names, question=questions, subject=people, priority=st.sampled_from((0, 0, 0, 1)))
    def enqueue(self, name: str, question: str, subject: str | None, priority: int) -> None:
        self._enqueue(name, question, subject, priority)

    @step(name=names, question=questions, subject=people, seed=seeds, state=states)
    def learn(self, name: str, question: str, subject: str | None, seed: int, state: MemoryState) -> None:
        """A question, and a worker's whole pass over what comes next; it may have other jobs at hand."""
        self._enqueue(name, question, subject, 0)
        self._claim(_HOUR, MODEL.id)
        if self.model.running():
            self._publish_one(seed, seed, state)

    def _enqueue(self, name: str, question: str, subject: str | None, priority: int) -> None:
        known = {(job.namespace, job.question): job_id for job_id, job in self.model.jobs.items()}
        options = {"task": "math", "model_id": MODEL.id, "recipe": RECIPE, "max_attempts": ATTEMPTS}
        job, created = self.bank.jobs.enqueue(name, question, subject=subject, priority=priority, **options)
        assert created == ((name, question) not in known)
        assert created or job.id == known[name, question]
        if created:
            self.model.queued += 1
            self.model.jobs[job.id] = Job(name, question, subject, priority, self.model.queued)
        self.touched.add(job.id)

    @step(seconds=st.sampled_from((_HOUR, _HOUR, _OVER)), model_id=st.sampled_from((None, MODEL.id)))
    def claim(self, seconds: float, model_id: str | None) -> None:
        self._claim(seconds, model_id)

    def _claim(self, seconds: float, model_id: str | None) -> Lease | None:
        if model_id is None:
            assert self.bank.jobs.claim("worker", lease_seconds=_HOUR, model_id="another model") is None
        expected = self.model.claim()
        lease = self.bank.jobs.claim("worker", lease_seconds=seconds, model_id=model_id)
        assert (lease and lease.job.id) == (expected and expected[0])
        if lease is not None and expected is not None:
            job_id, job = expected
            job.lease, job.lost = lease, seconds == _OVER
            self.touched.add(job_id)
        return lease

    @step(times=st.integers(1, ATTEMPTS), cancel=st.booleans())
    def take_over(self, times: int, cancel: bool) -> None:
        """Workers die one after the other, perhaps of a job that is to be cancelled; the last one lives."""
        for _ in range(times):
            lost = self._claim(_OVER, None)
        if lost is not None and cancel:
            self.bank.jobs.cancel(lost.job.namespace, lost.job.id)
            self.model.jobs[lost.job.id].cancel = True
        self._claim(_HOUR, None)
        if lost is not None:  # whether another worker has the job now, or nobody
            with pytest.raises(LeaseLost):
                self.bank.jobs.fail(lost, "too late", backoff_seconds=0)

    @precondition(lambda self: self.model.running())
    @step(pick=picks)
    def heartbeat(self, pick: int) -> None:
        _, job = self.running(pick)
        assert job.lease is not None
        assert self.bank.jobs.heartbeat(job.lease, lease_seconds=_HOUR, progress={"step": 1}) == job.cancel
        job.lost = False

    @precondition(lambda self: self.model.running())
    @step(pick=picks, seed=seeds, state=states)
    def publish(self, pick: int, seed: int, state: MemoryState) -> None:
        self._publish_one(pick, seed, state)

    def _publish_one(self, pick: int, seed: int, state: MemoryState) -> None:
        job_id, job = self.running(pick)
        assert job.lease is not None
        made = self._publish(job.lease, job.question, seed, state)
        new = Memory(job.namespace, job.question, seed, state, job.question, job.question, job.subject, job_id)
        self.model.memories[made.id] = new
        self.model.end(job, JobState.DONE)
        job.memory_id = made.id
        self.touched.add(made.id)

    @precondition(lambda self: self.model.stale)
    @step(pick=picks, seed=seeds)
    def publish_late(self, pick: int, seed: int) -> None:
        """A worker that was taken for dead while another one has its job, or whose job is over."""
        running = self.model.running()
        taken = [lease for lease in self.model.stale if lease.job.id in running] or self.model.stale
        lease = taken[pick % len(taken)]
        with pytest.raises(LeaseLost):
            self.bank.jobs.heartbeat(lease, lease_seconds=_HOUR)
        with pytest.raises(LeaseLost):
            self._publish(lease, lease.job.question, seed, MemoryState.ACTIVE)
        self.model.late += 1

    def _publish(self, lease: Lease, question: str, seed: int, state: MemoryState) -> MemoryRecord:
        options = {"task": "math", "model": MODEL, "recipe": RECIPE, "state": state, "reason": "why"}
        return self.bank.publish(lease, trained(question, seed), **options)

    @precondition(lambda self: self.model.running())
    @step(pick=picks, retry=st.booleans())
    def fail(self, pick: int, retry: bool) -> None:
        _, job = self.running(pick)
        assert job.lease is not None
        self.bank.jobs.fail(job.lease, "it broke", backoff_seconds=0, retry=retry)
        again = retry and job.attempts < ATTEMPTS
        ended = JobState.CANCELLED if job.cancel else JobState.QUEUED if again else JobState.FAILED
        self.model.end(job, ended)

    @precondition(lambda self: self.model.running())
    @step(pick=picks, asked=st.booleans())
    def give_back(self, pick: int, asked: bool) -> None:
        """Ctrl-C, or the wish to cancel was heard."""
        _, job = self.running(pick)
        assert job.lease is not None
        if asked:
            self.bank.jobs.cancelled(job.lease, "asked to stop")
            self.model.end(job, JobState.CANCELLED)
            return
        self.bank.jobs.release(job.lease, "Ctrl-C")
        job.attempts -= 1
        self.model.end(job, JobState.CANCELLED if job.cancel else JobState.QUEUED)

    @precondition(lambda self: self.model.jobs)
    @step(pick=picks)
    def cancel(self, pick: int) -> None:
        job_id, job = self.job(pick)
        with pytest.raises(NotFound):
            self.bank.jobs.cancel("alpha" if job.namespace != "alpha" else "own", job_id)
        self.bank.jobs.cancel(job.namespace, job_id)
        if job.state is JobState.QUEUED:
            job.state = JobState.CANCELLED
        job.cancel = job.state is JobState.RUNNING

    @precondition(lambda self: self.model.jobs)
    @step(pick=picks)
    def retry(self, pick: int) -> None:
        job_id, job = self.job(pick)
        if job.state in (JobState.FAILED, JobState.CANCELLED):
            self.bank.jobs.retry(job.namespace, job_id)
            job.state, job.attempts = JobState.QUEUED, 0
        else:
            with pytest.raises(InputError):
                self.bank.jobs.retry(job.namespace, job_id)
