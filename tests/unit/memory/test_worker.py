"""The worker and the runners: every way in which a job ends."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from elm_agent.errors import InputError, JobError, StorageError, StoreBusy, TrainingError
from elm_agent.memory.calibrating import Refit
from elm_agent.memory.runners import ExternalRunner, InlineRunner, ThreadRunner
from elm_agent.memory.worker import Worker
from elm_agent.protocols import Trained
from elm_agent.records import JobRecord, JobState
from elm_agent.storage.bank import Bank
from elm_agent.testing.doubles import FakeTrainer, fake_fingerprint

Enqueue = Callable[..., JobRecord]
Make = Callable[..., Worker]
MODEL_ID = fake_fingerprint().id


def test_it_works_until_nothing_is_due(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    jobs = [enqueue(f"What is {n}?") for n in range(3)]
    told: list[tuple[str, Any]] = []
    worker = make_worker(observe=lambda name, detail: told.append((name, detail)))
    assert worker.run(once=True) == 3
    assert {bank.jobs.get(job.namespace, job.id).state for job in jobs} == {JobState.DONE}
    assert [detail["job_id"] for name, detail in told if name == "job.done"] == [job.id for job in jobs]
    assert bank.jobs.get(jobs[0].namespace, jobs[0].id).progress["step"] == 2
    assert worker.idle()
    assert worker.run_one() is False


def test_several_jobs_at_the_same_time(enqueue: Enqueue, make_worker: Make) -> None:
    together = threading.Barrier(3, timeout=300)  # passes only when three jobs train at once

    def meet(step: int) -> None:
        if step == 0:
            together.wait()

    for n in range(3):
        enqueue(f"What is {n}?")
    assert make_worker(FakeTrainer(before_step=meet), concurrency=3).run(once=True) == 3


def test_jobs_of_another_model_are_left(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    job = enqueue(model_id=fake_fingerprint("another").id)
    worker = make_worker()
    assert worker.run(once=True) == 0
    assert bank.jobs.get(job.namespace, job.id).state is JobState.QUEUED
    assert worker.idle()


def test_a_passing_failure_is_tried_again_until_attempts_are_used_up(
    bank: Bank, enqueue: Enqueue, make_worker: Make
) -> None:
    job = enqueue(max_attempts=3)
    assert make_worker(FakeTrainer(error=RuntimeError("out of\nmemory"))).run(once=True) == 3
    job = bank.jobs.get(job.namespace, job.id)
    assert (job.state, job.attempts, job.reason) == (JobState.FAILED, 3, "RuntimeError: out of memory")


@pytest.mark.parametrize("error", [TrainingError("loss nan"), InputError("too long")])
def test_a_failure_that_would_repeat_is_final(
    bank: Bank, enqueue: Enqueue, make_worker: Make, error: Exception
) -> None:
    job = enqueue(max_attempts=3)
    assert make_worker(FakeTrainer(error=error)).run(once=True) == 1
    assert (bank.jobs.get(job.namespace, job.id).state, bank.jobs.get(job.namespace, job.id).attempts) == (
        JobState.FAILED,
        1,
    )


def test_a_fit_that_cannot_be_made_costs_no_memory(
    bank: Bank, enqueue: Enqueue, make_worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_given: object) -> int:
        raise StorageError("the disk is full")

    monkeypatch.setattr(bank.calibrations, "noted_since", broken)
    job = enqueue()
    told: list[str] = []
    make_worker(refit=Refit(), observe=lambda name, _detail: told.append(name)).run(once=True)
    assert bank.jobs.get(job.namespace, job.id).state is JobState.DONE
    assert told[-1] == "job.done"


def test_an_unknown_task_is_final(bank: Bank, enqueue: Enqueue) -> None:
    def trainer_for(name: str) -> FakeTrainer:
        raise InputError(f"no task {name}")

    job = enqueue(task="mine")
    Worker(bank=bank, trainer_for=trainer_for, model=fake_fingerprint()).run(once=True)
    assert bank.jobs.get(job.namespace, job.id).reason == "InputError: no task mine"


def test_cancelling_a_running_job(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    job = enqueue()
    trainer = FakeTrainer(before_step=lambda step: bank.jobs.cancel(job.namespace, job.id) if step == 0 else None)
    told: list[str] = []
    make_worker(trainer, observe=lambda name, _detail: told.append(name)).run(once=True)
    assert bank.jobs.get(job.namespace, job.id).state is JobState.CANCELLED
    assert told[-1] == "job.cancelled"
    assert bank.memories("ns") == []


SIGNALLED = """
import itertools, signal, sys, threading, types
from elm_agent.memory import worker as at
from elm_agent.testing.doubles import fake_fingerprint

HERE = {at.__file__, threading.__file__}
jobs = types.SimpleNamespace(claim=lambda *_args, **_more: None)

def stopped_at(moment):
    "Whether a signal before the line of that number, of all that an idle worker runs, was one that ended it."
    worker = at.Worker(
        bank=types.SimpleNamespace(jobs=jobs), trainer_for=None, model=fake_fingerprint(), poll_seconds=1e-4
    )
    lines, came = itertools.count(), []
    def stop(*_):
        came.append(moment)
        worker.stop()
    def trace(frame, event, _):
        if frame.f_code.co_filename in HERE:
            if event == "line" and next(lines) == moment:
                signal.raise_signal(signal.SIGTERM)
            return trace
    signal.signal(signal.SIGTERM, stop)
    sys.settrace(trace)
    worker.run()
    sys.settrace(None)
    return bool(came)

print(sum(stopped_at(moment) for moment in range(100)))
"""


def test_a_signal_stops_an_idle_worker_whenever_it_comes() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("100", "")


def test_stopping_gives_the_job_back_uncounted(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    job = enqueue()
    workers: list[Worker] = []
    trainer = FakeTrainer(before_step=lambda _step: workers[0].stop())
    workers.append(make_worker(trainer))
    assert workers[0].run() == 1
    back = bank.jobs.get(job.namespace, job.id)
    assert (back.state, back.attempts, back.owner) == (JobState.QUEUED, 0, None)
    assert make_worker().run(once=True) == 1
    assert bank.jobs.get(job.namespace, job.id).state is JobState.DONE


def test_an_interrupt_gives_the_job_back(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    def interrupt(_step: int) -> None:
        raise KeyboardInterrupt

    job = enqueue()
    with pytest.raises(KeyboardInterrupt):
        make_worker(FakeTrainer(before_step=interrupt)).run(once=True)
    assert (bank.jobs.get(job.namespace, job.id).state, bank.jobs.get(job.namespace, job.id).attempts) == (
        JobState.QUEUED,
        0,
    )


def test_a_lost_lease_discards_the_result(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    job = enqueue()
    told: list[str] = []

    def overtaken(step: int) -> None:
        if step == 0:
            lease = bank.jobs.claim("other", lease_seconds=60)
            assert lease is not None

    worker = make_worker(
        FakeTrainer(before_step=overtaken),
        lease_seconds=-1.0,
        observe=lambda name, _detail: told.append(name),
    )
    worker.run_one()
    assert told[-1] == "job.lost"
    assert (bank.jobs.get(job.namespace, job.id).state, bank.jobs.get(job.namespace, job.id).owner) == (
        JobState.RUNNING,
        "other",
    )
    assert bank.memories("ns") == []


def test_the_heartbeat_keeps_a_long_step_alive(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    enqueue()
    beats = threading.Semaphore(0)
    heartbeat = bank.jobs.heartbeat

    def counted(*args: Any, **kwargs: Any) -> bool:
        beats.release()
        return heartbeat(*args, **kwargs)

    bank.jobs.heartbeat = counted  # type: ignore[method-assign]

    def long_step(_step: int) -> None:
        for _ in range(3):
            assert beats.acquire(timeout=300)

    assert make_worker(FakeTrainer(before_step=long_step), heartbeat_seconds=0.01).run(once=True) == 1
    assert len(bank.memories("ns")) == 1


def test_a_busy_store_is_waited_for(
    bank: Bank, enqueue: Enqueue, make_worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, busy = bank.jobs.claim, [StoreBusy("locked"), StoreBusy("locked")]

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        if busy:
            raise busy.pop()
        return claim(*args, **kwargs)

    monkeypatch.setattr(bank.jobs, "claim", sometimes)
    with pytest.raises(StoreBusy):
        make_worker().run(once=True)
    enqueue()
    runner = ThreadRunner(make_worker())
    runner.start()
    assert runner.wait_idle(30)
    runner.stop()
    assert len(bank.memories("ns")) == 1


def test_jobs_of_other_tasks_are_left(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    mine, other = enqueue(task="mine"), enqueue("What is 9?", task="other")
    worker = make_worker(tasks=["mine"])
    assert worker.run(once=True) == 1
    assert worker.idle()
    assert ExternalRunner(bank, MODEL_ID, ["mine"]).wait_idle(0)
    assert ExternalRunner(bank, MODEL_ID).wait_idle(0) is False
    assert (bank.jobs.get(mine.namespace, mine.id).state, bank.jobs.get(other.namespace, other.id).state) == (
        JobState.DONE,
        JobState.QUEUED,
    )


@pytest.mark.parametrize("once", [True, False])
def test_what_another_slot_meets_is_raised(
    bank: Bank, make_worker: Make, monkeypatch: pytest.MonkeyPatch, once: bool
) -> None:
    claim = bank.jobs.claim

    def broken(*args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name == "elm-worker-1":
            raise StoreBusy("locked") if once else ValueError("a broken queue")
        return claim(*args, **kwargs)

    monkeypatch.setattr(bank.jobs, "claim", broken)
    with pytest.raises(StoreBusy if once else ValueError):
        make_worker(concurrency=2).run(once=once)


def test_finishing_ends_after_the_job_in_hand(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    first, second = enqueue(), enqueue("What is 9?")
    workers: list[Worker] = []
    workers.append(make_worker(FakeTrainer(before_step=lambda _step: workers[0].finish())))
    assert workers[0].run() == 1
    assert (bank.jobs.get(first.namespace, first.id).state, bank.jobs.get(second.namespace, second.id).state) == (
        JobState.DONE,
        JobState.QUEUED,
    )


# --- runners ------------------------------------------------------------------------------------------------


def test_inline_learns_before_notify_returns(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    runner = InlineRunner(make_worker())
    runner.start()
    enqueue()
    runner.notify()
    assert len(bank.memories("ns")) == 1
    enqueue("What is 9?")
    assert runner.wait_idle(30)
    assert len(bank.memories("ns")) == 2
    runner.stop()


def test_thread_learns_behind_and_stops(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    runner = ThreadRunner(make_worker(poll_seconds=60.0))
    runner.start()
    runner.start()
    enqueue()
    runner.notify()
    assert runner.wait_idle(30)
    assert len(bank.memories("ns")) == 1
    runner.stop()
    runner.stop()
    enqueue("What is 9?")
    with pytest.raises(JobError, match="does not run"):
        runner.wait_idle(30)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_not_waited_for(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    def broken(*_args: Any, **_kwargs: Any) -> None:
        raise ValueError("a broken queue")

    enqueue()
    bank.jobs.claim = broken  # type: ignore[method-assign,assignment]
    runner = ThreadRunner(make_worker())
    runner.start()
    with pytest.raises(JobError) as caught:
        runner.wait_idle(30)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("step", ["job.claimed", "train.step", "publish.committed", "job.done"])
def test_an_observer_that_raises_costs_nothing(
    bank: Bank, enqueue: Enqueue, make_worker: Make, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    def broken(name: str, _detail: Any) -> None:
        if name == step:
            raise ValueError("a broken observer")

    jobs = [enqueue(), enqueue("What is 9?")]
    assert make_worker(observe=broken).run(once=True) == 2
    assert {bank.jobs.get(job.namespace, job.id).state for job in jobs} == {JobState.DONE}
    assert f"the observer failed at {step!r}" in caplog.text


def test_external_only_waits(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    runner = ExternalRunner(bank, fake_fingerprint().id)
    runner.start()
    enqueue()
    runner.notify()
    assert runner.wait_idle(0.1) is False
    make_worker().run(once=True)
    assert runner.wait_idle(0.1) is True
    runner.stop()


def test_a_training_that_fails_leaves_its_curve_in_the_job(bank: Bank, enqueue: Enqueue, make_worker: Make) -> None:
    class Diverging(FakeTrainer):
        def train(self, question: str, **more: Any) -> Trained:
            error = TrainingError("step 3: loss nan")
            error.curve = super().train(question, **more).curve
            raise error

    job = enqueue()
    make_worker(Diverging(steps=2)).run(once=True)
    job = bank.jobs.get(job.namespace, job.id)
    assert (job.state, job.reason) == (JobState.FAILED, "TrainingError: step 3: loss nan")
    assert (job.progress["step"], job.progress["steps"]) == (2, 2)
    assert [(step["step"], step["grad_norm"]) for step in job.progress["curve"]] == [(0, 1.0), (1, 1.0)]
    assert bank.memories("ns") == []
