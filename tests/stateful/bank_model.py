"""What a bank should say, in plain dictionaries: memories, jobs and uses, and what each change makes of them.

Knows nothing of the bank. Everything is kept in the order in which it was made, so that the same choices of
Hypothesis pick the same things although ids are random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from elm_agent.records import JobState, MemoryState, UseOutcome
from elm_agent.storage.queue.jobs import Lease

SHARED = ("alpha", "beta")
NAMES = (*SHARED, "own")
ATTEMPTS = 3

GOES = {  # (from, to): every way there is
    (MemoryState.CANDIDATE, MemoryState.ACTIVE),
    (MemoryState.RETIRED, MemoryState.ACTIVE),
    (MemoryState.QUARANTINED, MemoryState.ACTIVE),
    (MemoryState.CANDIDATE, MemoryState.RETIRED),
    (MemoryState.ACTIVE, MemoryState.RETIRED),
    (MemoryState.QUARANTINED, MemoryState.RETIRED),
    (MemoryState.CANDIDATE, MemoryState.QUARANTINED),
    (MemoryState.ACTIVE, MemoryState.QUARANTINED),
    (MemoryState.RETIRED, MemoryState.QUARANTINED),
}


@dataclass
class Memory:
    """One memory. ``seed`` stands for its prompt, ``keyed`` is the question that its keys were made from, and
    ``named`` the one that its digest is of: both outlive a pack that leaves questions out."""

    namespace: str
    question: str
    seed: int
    state: MemoryState
    keyed: str
    named: str
    subject: str | None = None
    job_id: str | None = None
    pinned: bool = False
    valid_until: datetime | None = None


@dataclass
class Job:
    """One job. ``lost``: its worker is silent, and its lease has run out."""

    namespace: str
    question: str
    subject: str | None
    priority: int
    place: int  # in the queue
    state: JobState = JobState.QUEUED
    attempts: int = 0
    cancel: bool = False
    lost: bool = False
    lease: Lease | None = None
    memory_id: str | None = None


@dataclass
class Use:
    """One use: where it was, and of which memory."""

    namespace: str
    home: str
    memory_id: str
    subject: str | None
    outcome: UseOutcome = UseOutcome.UNKNOWN


@dataclass
class Model:
    """``stale``: leases that hold nothing any more. ``late``: how often something was published with one."""

    memories: dict[str, Memory] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    uses: dict[str, Use] = field(default_factory=dict)
    purged: dict[str, str] = field(default_factory=dict)  # id: namespace
    stale: list[Lease] = field(default_factory=list)
    late: int = 0
    queued: int = 0

    # --- jobs ---------------------------------------------------------------------------------------------

    def running(self) -> dict[str, Job]:
        return {one: job for one, job in self.jobs.items() if job.state is JobState.RUNNING}

    def claim(self) -> tuple[str, Job] | None:
        """The job that comes next, counted and running; those whose last worker was lost end on the way."""
        for job_id, job in sorted(self.jobs.items(), key=lambda item: (-item[1].priority, item[1].place)):
            if job.state is not JobState.QUEUED and not (job.state is JobState.RUNNING and job.lost):
                continue
            if job.state is JobState.RUNNING and (job.cancel or job.attempts >= ATTEMPTS):
                self.end(job, JobState.CANCELLED if job.cancel else JobState.FAILED)
                continue
            self.end(job, JobState.RUNNING)
            job.attempts += 1
            return job_id, job
        return None

    def end(self, job: Job, state: JobState) -> None:
        """Whoever held the job does so no more."""
        if job.lease is not None:
            self.stale.append(job.lease)
        job.state, job.lease, job.cancel, job.lost = state, None, False, False

    # --- memories -----------------------------------------------------------------------------------------

    def of(self, name: str, state: MemoryState | None = None) -> dict[str, Memory]:
        mine = {one: memory for one, memory in self.memories.items() if memory.namespace == name}
        return {one: memory for one, memory in mine.items() if state in (None, memory.state)}

    def same(self, name: str, seed: int) -> set[str]:
        """The memories of the namespace with this very prompt."""
        return {one for one, memory in self.of(name).items() if memory.seed == seed}

    def retire(self, memory_ids: Iterable[str]) -> None:
        for memory_id in memory_ids:
            self.memories[memory_id].state = MemoryState.RETIRED

    def purge(self, memory_ids: Iterable[str]) -> None:
        gone = set(memory_ids)
        for memory_id in gone:
            memory = self.memories.pop(memory_id)
            self.purged[memory_id] = memory.namespace
            if memory.job_id is not None:
                self.jobs.pop(memory.job_id, None)
        self.uses = {one: use for one, use in self.uses.items() if use.memory_id not in gone}

    def forget(self, subject: str, names: Collection[str]) -> None:
        def theirs(entry: Memory | Job | Use) -> bool:
            return entry.subject == subject and entry.namespace in names

        self.purge([one for one, memory in self.memories.items() if theirs(memory)])
        self.stale += [job.lease for job in self.jobs.values() if theirs(job) and job.lease is not None]
        self.jobs = {one: job for one, job in self.jobs.items() if not theirs(job)}
        self.uses = {one: use for one, use in self.uses.items() if not theirs(use)}

    # --- what is to be seen -------------------------------------------------------------------------------

    def shown(self, memory_ids: Collection[str]) -> dict[str, tuple[Any, ...]]:
        outcomes: dict[str, Counter[UseOutcome]] = {one: Counter() for one in memory_ids}
        for use in self.uses.values():
            if use.memory_id in outcomes:
                outcomes[use.memory_id][use.outcome] += 1
        return {
            one: (
                *(memory.namespace, memory.question, memory.state, memory.pinned, memory.valid_until, memory.job_id),
                *(counted.total(), counted[UseOutcome.FIXED], counted[UseOutcome.BROKEN]),
            )
            for one, counted in outcomes.items()
            for memory in [self.memories[one]]
        }

    def counts(self, name: str) -> Counter[MemoryState]:
        counted = Counter(memory.state for memory in self.memories.values() if memory.namespace == name)
        counted[MemoryState.PURGED] = sum(namespace == name for namespace in self.purged.values())
        return counted

    def job_shown(self, job_id: str) -> tuple[Any, ...]:
        job = self.jobs[job_id]
        return (
            *(job.namespace, job.question, job.state, job.attempts, job.priority, job.cancel),
            *(job.memory_id, None if job.lease is None else job.lease.fence),
        )
