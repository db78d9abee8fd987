"""Ties a stream to a runtime: the graph answers, the task compares, the bank settles, the queue is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from elm_agent.bench.stream_run import StreamParts
from elm_agent.records import JobRecord, JobState, UseOutcome

if TYPE_CHECKING:
    from elm_agent.integrations.langgraph import RunContext
    from elm_agent.protocols import Observer
    from elm_agent.runtime import Runtime

LOOK_SECONDS = 0.1
OVER = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


def parts_of(runtime: Runtime, *, observe: Observer, context: RunContext | None = None) -> StreamParts:
    """What ``run_stream`` needs of ``runtime``; ``context`` is passed to every run of the graph.

    Learning is waited for when this process does it; an external worker works at its own pace. Told to
    ``observe``: ``learning`` with the job's progress, whenever it changes.
    """
    from elm_agent.integrations.langgraph import build_graph

    graph = build_graph(runtime)
    namespace = runtime.settings.namespace

    def answer(question: str, subject: str | None) -> Mapping[str, Any]:
        result: Mapping[str, Any] = graph.invoke({"question": question, "subject": subject}, context=context)
        return result

    def settle(use_id: str, outcome: UseOutcome) -> None:
        runtime.bank.settle_use(namespace, use_id, outcome)

    def learn(job_id: str) -> Mapping[str, Any]:
        started = time.perf_counter()
        job = wait_for(
            lambda: runtime.bank.jobs.get(namespace, job_id),
            pause=lambda: runtime.runner.wait_idle(LOOK_SECONDS),
            observe=observe,
        )
        seconds = round(time.perf_counter() - started, 2)
        told = {"job_id": job.id, "state": job.state.value, "memory_id": job.memory_id, "reason": job.reason}
        return told | {"seconds": seconds}

    waits = runtime.settings.worker.mode != "external"
    return StreamParts(
        answer=answer, equivalent=runtime.task.equivalent, settle=settle, learn=learn if waits else None
    )


def wait_for(look: Callable[[], JobRecord], *, pause: Callable[[], object], observe: Observer) -> JobRecord:
    """Look at a job until it is over; tells its progress on the way. ``pause`` raises when nobody works any more."""
    told: dict[str, Any] = {}
    while (job := look()).state not in OVER:
        if job.progress and job.progress != told:
            told = dict(job.progress)
            observe("learning", {"job_id": job.id, **told})
        pause()
    return job
