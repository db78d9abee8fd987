"""``elm-agent worker``: a process that learns what waits in the queue, beside the agents that only queue."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from elm_agent.cli.opening import opened_runtime
from elm_agent.cli.options import Shared
from elm_agent.cli.output import Output, plain, short
from elm_agent.errors import InputError

if TYPE_CHECKING:
    from elm_agent.executors.ray import RayRunner, RayStatus
    from elm_agent.runtime import Runtime

LEARNT_ELSEWHERE = {"worker": {"mode": "external"}}  # no second learner in this process
_LOOK_SECONDS = 1.0  # between two looks at the workers on Ray


def worker(
    options: Shared,
    once: Annotated[
        bool, typer.Option("--once", help="Stop when no job is due; one that failed waits a while.")
    ] = False,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", min=1, help="Jobs learned at the same time.  [default: worker.concurrency]"),
    ] = None,
) -> None:
    """Learn what waits in the queue, for this model and all namespaces, until stopped.

    With `worker.mode = "ray"` it keeps workers on a Ray cluster instead, as many as the queue is deep.
    Ctrl-C or SIGTERM stops after the current training step, and the unfinished job goes back to the queue.
    """
    out = options.output()
    if options.load().worker.mode == "ray":
        if concurrency is not None:
            raise InputError("--concurrency is for learning in this process: on Ray set ray.max_actors")
        with opened_runtime(options, owns_index=False) as runtime:
            _learn_on_ray(runtime, out, once=once)
        return
    with opened_runtime(options, owns_index=False, **LEARNT_ELSEWHERE) as runtime:
        learner = runtime.worker(concurrency=concurrency, observe=lambda name, detail: _tell(out, name, detail))
        out.note(f"learning with {runtime.model.fingerprint.name}; Ctrl-C stops")
        with _stopped_by_signals(learner.stop) as signals:
            taken = learner.run(once=once)
        if signals:
            raise KeyboardInterrupt
        waiting = ", but some wait for another attempt or run elsewhere: see `elm-agent jobs list`"
        out.note(f"{taken} jobs taken; none is due{'' if learner.idle() else waiting}")


def _learn_on_ray(runtime: Runtime, out: Output, *, once: bool) -> None:
    """Say how the workers are until nothing is due (``once``) or a signal comes; closing the runtime stops them."""
    runner = cast("RayRunner", runtime.runner)
    out.note(f"learning with {runtime.model.fingerprint.name} on Ray; Ctrl-C stops")
    told: tuple[object, ...] = ()
    with _stopped_by_signals(lambda: None) as signals:
        idle = False
        while not signals and not (idle and once):
            idle = runner.wait_idle(_LOOK_SECONDS)
            status = runner.status()
            now = (status.wanted, status.problem, *((actor.name, actor.state) for actor in status.actors))
            if now != told:
                _tell_status(out, status)
            told = now
            if idle and not once:
                time.sleep(_LOOK_SECONDS)
    if signals:
        raise KeyboardInterrupt
    out.note("no job is due")


def _tell_status(out: Output, status: RayStatus) -> None:
    if out.json:
        out.event("ray.status", plain(status))
        return
    actors = ", ".join(f"{actor.name} {actor.state}" for actor in status.actors) or "no workers"
    out.say(f"{status.jobs} jobs, {status.wanted} workers wanted: {actors}")


@contextmanager
def _stopped_by_signals(ask: Callable[[], None]) -> Iterator[Sequence[int]]:
    """The signals that came: the first calls ``ask``, which asks the worker to stop between two steps, the second
    interrupts it."""
    came: list[int] = []  # not an event: a handler would wait for its lock for ever

    def stop(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt
        ask()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
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
