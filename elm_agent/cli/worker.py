"""``elm-agent worker``: a process that learns what waits in the queue, beside the agents that only queue."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elm_agent.cli.opening import opened_runtime
from elm_agent.cli.options import Shared
from elm_agent.cli.output import Output, short

if TYPE_CHECKING:
    from elm_agent.memory.worker import Worker

LEARNT_ELSEWHERE = {"worker": {"mode": "external"}}  # no second learner in this process


def worker(
    options: Shared,
    once: Annotated[bool, typer.Option("--once", help="Stop when no job is due.")] = False,
    concurrency: Annotated[int, typer.Option("--concurrency", min=1, help="Jobs learned at the same time.")] = 1,
) -> None:
    """Learn what waits in the queue, for this model and all namespaces, until stopped.

    Ctrl-C or SIGTERM stops after the current training step, and the unfinished job goes back to the queue.
    """
    out = options.output()
    with opened_runtime(options, owns_index=False, **LEARNT_ELSEWHERE) as runtime:
        learner = runtime.worker(concurrency=concurrency, observe=lambda name, detail: _tell(out, name, detail))
        out.note(f"learning with {runtime.model.fingerprint.name}; Ctrl-C stops")
        with _stopped_by_signals(learner) as stopped:
            taken = learner.run(once=once)
        if stopped.is_set():
            raise KeyboardInterrupt
        out.note(f"{taken} jobs taken; none is due")


@contextmanager
def _stopped_by_signals(learner: Worker) -> Iterator[threading.Event]:
    """The first signal asks the worker to stop between two steps, the second interrupts it."""
    stopped = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        learner.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(out: Output, name: str, detail: Mapping[str, Any]) -> None:
    if out.json:
        out.event(name, detail)
        return
    job = detail["job_id"]
    if name == "job.claimed":
        out.say(f"{job}: {short(detail['question'])} (attempt {detail['attempt']})")
    elif name == "train.step":
        out.say(f"{job}: step {detail['step'] + 1}, vote share {detail['vote_share']:.2f}")
    elif name == "job.done":
        out.say(f"{job}: {detail['memory_id']}, {detail['state']}")
    elif name.startswith("job."):
        out.say(f"{job}: {name.removeprefix('job.')}, {detail['reason']}")
