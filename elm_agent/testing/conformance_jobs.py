"""What every ``JobRunner`` must do, as a pytest class: subclass it, give its fixture, and your executor is judged.

    class TestMine(JobExecutorSuite):
        capabilities = frozenset({ExecutorCapability.BACKGROUND})

        @pytest.fixture(scope="class")
        def opened(self):
            def opened(settings):  # a context manager that yields a started JobRunner
                return my_runner(settings)
            return opened

The runner works off the bank of ``settings`` with the fake model and a ``ScriptedTrainer(settings.home)``
(``scripted.open_scripted_runtime`` opens both), wherever it trains.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from elm_agent.protocols import JobRunner
from elm_agent.records import JobRecord, JobState, Recipe
from elm_agent.settings import Settings
from elm_agent.testing.doubles import fake_fingerprint
from elm_agent.testing.scripted import let_go, starts

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank

Opened = Callable[[Settings], AbstractContextManager[JobRunner]]

PATIENCE = 300.0
"""Seconds that anything may take before a test gives up; nothing is asserted to be quick."""


class ExecutorCapability(StrEnum):
    """What an executor may lack: then those tests are skipped."""

    BACKGROUND = "background"  # notify returns before the job is done
    PARALLEL = "parallel"  # several jobs at the same time: as many as the suite's ``slots``
    KILLABLE = "killable"  # it trains in processes of its own, which can be killed


@dataclass
class Bench:
    """A bank with the runner under test on it. Each test has a namespace of its own."""

    bank: Bank
    runner: JobRunner
    home: Path
    namespace: str
    recipe: Recipe = field(default_factory=lambda: Recipe(steps=2, virtual_tokens=2))

    def ask(self, question: str, *, notify: bool = True, namespace: str | None = None, **more: Any) -> JobRecord:
        """Queue a job."""
        where = namespace or self.namespace
        values: dict[str, Any] = {"task": "math", "model_id": fake_fingerprint().id, "recipe": self.recipe} | more
        job, created = self.bank.jobs.enqueue(where, f"{question} ({where})", **values)
        assert created
        if notify:
            self.runner.notify()
        return job

    def job(self, job: JobRecord) -> JobRecord:
        return self.bank.jobs.get(job.namespace, job.id)

    def begun(self, job: JobRecord) -> list[int]:
        """The processes in which the training of ``job`` began, one for each attempt."""
        return [start.pid for start in starts(self.home) if start.question == job.question]

    def until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, f"waited {PATIENCE:g} s for: {what}"
            time.sleep(0.02)

    def settle(self) -> None:
        assert self.runner.wait_idle(PATIENCE), self.bank.jobs.counts()

    def memories(self, namespace: str | None = None) -> list[str]:
        return sorted(memory.question for memory in self.bank.memories(namespace or self.namespace))


@contextmanager
def bench_on(settings: Settings, opened: Opened, namespace: str) -> Iterator[Bench]:
    """The bank of ``settings`` and a runner on it, both closed afterwards."""
    from elm_agent.runtime import open_bank

    bank = open_bank(settings, owns_index=False)
    try:
        bank.bind(settings.namespace, fake_fingerprint())
        with opened(settings) as runner:
            yield Bench(bank, runner, settings.home, namespace)
    finally:
        bank.close()


class JobExecutorSuite:
    """Judges a ``JobRunner``. Give ``opened``, ``capabilities`` and ``slots``; ``settings_of`` may add settings."""

    capabilities: frozenset[ExecutorCapability] = frozenset()
    slots = 1  # jobs at the same time, once it has warmed up

    @pytest.fixture(scope="class")
    def opened(self) -> Opened:
        raise NotImplementedError("give a class-scoped fixture `opened`: settings -> context manager of a JobRunner")

    def settings_of(self, home: Path) -> Settings:
        """A bank on SQLite below ``home``, and a queue that is looked at often."""
        worker = {"lease_seconds": 60.0, "heartbeat_seconds": 1.0, "poll_seconds": 0.05, "backoff_seconds": 0.1}
        return Settings(home=home, index="exact", worker=worker)

    @pytest.fixture(scope="class")
    def shared(self, tmp_path_factory: pytest.TempPathFactory, opened: Opened) -> Iterator[Bench]:
        """One runner for the tests that do not end it: starting one may take seconds."""
        with bench_on(self.settings_of(tmp_path_factory.mktemp("shared")), opened, "default") as made:
            yield made

    @pytest.fixture
    def bench(self, shared: Bench, request: pytest.FixtureRequest) -> Iterator[Bench]:
        """The shared runner, with a namespace for this test."""
        namespace = re.sub("[^a-zA-Z0-9]+", "-", request.node.name)[:80].strip("-")
        shared.bank.bind(namespace, fake_fingerprint())
        yield Bench(shared.bank, shared.runner, shared.home, namespace)
        for job in shared.bank.jobs.list(namespace):  # a failed test must not hold up the next
            shared.bank.jobs.cancel(job.namespace, job.id)

    @pytest.fixture
    def short_lease(self, tmp_path: Path, opened: Opened) -> Iterator[Bench]:
        """As ``alone``; whoever is killed is replaced after a few seconds."""
        worker = {"lease_seconds": 3.0, "heartbeat_seconds": 0.3}
        with bench_on(self.settings_of(tmp_path).changed(worker=worker), opened, "default") as made:
            yield made

    @pytest.fixture
    def alone(self, tmp_path: Path, opened: Opened) -> Iterator[Bench]:
        """A runner that the test may stop or kill."""
        with bench_on(self.settings_of(tmp_path), opened, "default") as made:
            yield made

    def need(self, *capabilities: ExecutorCapability) -> None:
        if missing := set(capabilities) - self.capabilities:
            pytest.skip(f"this executor is not {', '.join(sorted(missing))}")

    def kill(self, pids: Sequence[int]) -> None:
        """Kill the processes that train; override it where a signal does not reach them."""
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    # --- done once -------------------------------------------------------------------------------------------

    def test_every_job_is_done_once(self, bench: Bench) -> None:
        jobs = [bench.ask(f"What is {n} + {n}?") for n in range(8)]
        bench.settle()
        found = [bench.job(job) for job in jobs]
        assert [(job.state, job.attempts) for job in found] == [(JobState.DONE, 1)] * 8
        assert bench.memories() == sorted(job.question for job in jobs)
        assert {job.memory_id for job in found} == {memory.id for memory in bench.bank.memories(bench.namespace)}
        assert [len(bench.begun(job)) for job in jobs] == [1] * 8

    def test_a_repeated_experience_is_one_job(self, bench: Bench) -> None:
        job = bench.ask("once")
        bench.settle()
        _, created = bench.bank.jobs.enqueue(
            bench.namespace, job.question, task="math", model_id=job.model_id, recipe=bench.recipe
        )
        bench.runner.notify()
        bench.settle()
        assert not created
        assert len(bench.begun(job)) == 1

    def test_nothing_queued_is_idle(self, bench: Bench) -> None:
        bench.runner.notify()
        assert bench.runner.wait_idle(PATIENCE)
        assert bench.runner.wait_idle(0)

    @pytest.mark.parametrize(
        "question",
        ["größer als 数学 🧠?", "\u202eright to left\u202c שאלה", "tab\tand\nline", "x" * 10_000],
        ids=["unicode", "direction", "space", "long"],
    )
    def test_any_words(self, bench: Bench, question: str) -> None:
        job = bench.ask(question)
        bench.settle()
        assert bench.job(job).state is JobState.DONE
        assert bench.memories() == [job.question]

    def test_namespaces_are_served_alike_and_kept_apart(self, bench: Bench) -> None:
        spaces = [f"{bench.namespace}.{n}" for n in range(3)]
        for space in spaces:
            bench.bank.bind(space, fake_fingerprint())
        jobs = {space: bench.ask("the same words", namespace=space) for space in spaces}
        bench.settle()
        assert {space: bench.memories(space) for space in spaces} == {
            space: [jobs[space].question] for space in spaces
        }

    def test_jobs_of_another_model_are_left_alone(self, bench: Bench) -> None:
        job = bench.ask("not mine", model_id=fake_fingerprint("another").id)
        mine = bench.ask("mine")
        bench.settle()
        assert (bench.job(job).state, bench.job(mine).state) == (JobState.QUEUED, JobState.DONE)

    def test_jobs_of_another_task_are_left_alone(self, bench: Bench) -> None:
        job = bench.ask("not mine", task="somebody's own")
        mine = bench.ask("mine")
        bench.settle()
        assert (bench.job(job).state, bench.job(job).attempts, bench.job(mine).state) == ("queued", 0, "done")

    # --- order -------------------------------------------------------------------------------------------------

    def test_the_highest_priority_begins_first_then_the_oldest(self, bench: Bench) -> None:
        holds = [f"{bench.namespace}.{slot}" for slot in range(self.slots)]
        if ExecutorCapability.BACKGROUND in self.capabilities:  # all slots are busy, then one is free
            held = [bench.ask(f"[hold:{hold}] first") for hold in holds]
            bench.until(lambda: all(bench.begun(job) for job in held), f"{self.slots} trainings to begin")
        for question, priority in (("a", 0), ("b", 0), ("c", 5), ("d", 5)):
            bench.ask(question, priority=priority, notify=False)
        bench.runner.notify()
        let_go(bench.home, holds[0])
        bench.until(lambda: len(_begun_in(bench)) == 4, "all to begin")
        for hold in holds:
            let_go(bench.home, hold)
        bench.settle()
        assert _begun_in(bench) == ["c", "d", "a", "b"]

    # --- failure -------------------------------------------------------------------------------------------------

    def test_a_failure_is_tried_again(self, bench: Bench) -> None:
        job = bench.ask("[fail-once] then fine")
        bench.settle()
        assert (bench.job(job).state, bench.job(job).attempts) == (JobState.DONE, 2)
        assert len(bench.begun(job)) == 2

    def test_attempts_end(self, bench: Bench) -> None:
        job = bench.ask("[fail] always", max_attempts=2)
        other = bench.ask("fine")
        bench.settle()
        assert (bench.job(job).state, bench.job(job).attempts) == (JobState.FAILED, 2)
        assert "the script says to fail" in str(bench.job(job).reason)
        assert bench.job(other).state is JobState.DONE
        assert bench.memories() == [other.question]

    def test_what_no_second_attempt_mends_fails_at_once(self, bench: Bench) -> None:
        job = bench.ask("[fatal] for ever")
        bench.settle()
        assert (bench.job(job).state, bench.job(job).attempts) == (JobState.FAILED, 1)

    def test_a_failed_job_can_be_retried(self, bench: Bench) -> None:
        job = bench.ask("[fail-once] and retried", max_attempts=1)
        bench.settle()
        assert bench.job(job).state is JobState.FAILED
        bench.bank.jobs.retry(job.namespace, job.id)
        bench.runner.notify()
        bench.settle()
        assert bench.job(job).state is JobState.DONE

    # --- cancelling and stopping -----------------------------------------------------------------------------------

    def test_a_queued_job_can_be_cancelled(self, bench: Bench) -> None:
        job = bench.ask("[hold:never] not yet", notify=False, model_id=fake_fingerprint("nobody's").id)
        assert bench.bank.jobs.cancel(job.namespace, job.id).state is JobState.CANCELLED
        bench.runner.notify()
        bench.settle()
        assert (bench.job(job).state, bench.begun(job)) == (JobState.CANCELLED, [])

    def test_a_running_job_can_be_cancelled(self, bench: Bench) -> None:
        self.need(ExecutorCapability.BACKGROUND)
        job = bench.ask("[hold:never] for long")
        bench.until(lambda: bool(bench.begun(job)), "the training to begin")
        bench.bank.jobs.cancel(job.namespace, job.id)
        bench.settle()
        assert bench.job(job).state is JobState.CANCELLED
        assert bench.memories() == []

    def test_waiting_has_an_end(self, bench: Bench) -> None:
        self.need(ExecutorCapability.BACKGROUND)
        job = bench.ask(f"[hold:{bench.namespace}] for long")
        assert bench.runner.wait_idle(0.1) is False
        let_go(bench.home, bench.namespace)
        bench.settle()
        assert bench.job(job).state is JobState.DONE

    def test_starting_and_notifying_again_is_harmless(self, bench: Bench) -> None:
        for _ in range(3):
            bench.runner.start()
            bench.runner.notify()
        job = bench.ask("still fine")
        bench.settle()
        assert len(bench.begun(job)) == 1

    def test_stopping_gives_the_job_back_and_is_idempotent(self, alone: Bench) -> None:
        self.need(ExecutorCapability.BACKGROUND)
        job = alone.ask("[hold:never] for long")
        alone.until(lambda: bool(alone.begun(job)), "the training to begin")
        self.stop(alone)
        self.stop(alone)
        back = alone.job(job)
        assert (back.state, back.attempts, back.owner) == (JobState.QUEUED, 0, None)
        assert alone.memories() == []

    def stop(self, bench: Bench) -> None:
        """Stop the executor; override it where ``runner.stop`` is not what ends the training."""
        bench.runner.stop()

    # --- many -------------------------------------------------------------------------------------------------------

    def test_threads_queue_and_notify(self, bench: Bench) -> None:
        with ThreadPoolExecutor(8) as pool:
            jobs = list(pool.map(lambda n: bench.ask(f"from thread {n}"), range(24)))
        bench.settle()
        assert Counter(bench.job(job).state for job in jobs) == {JobState.DONE: 24}
        assert [len(bench.begun(job)) for job in jobs] == [1] * 24

    def test_several_jobs_at_the_same_time(self, bench: Bench) -> None:
        self.need(ExecutorCapability.PARALLEL)
        jobs = [bench.ask(f"[hold:{bench.namespace}] {n}") for n in range(2)]
        bench.until(lambda: all(bench.begun(job) for job in jobs), "both to train at once")
        let_go(bench.home, bench.namespace)
        bench.settle()
        assert len(bench.memories()) == 2

    def test_several_runners_share_one_queue(self, alone: Bench, opened: Opened) -> None:
        with opened(self.settings_of(alone.home)) as other:
            barrier = threading.Barrier(2)

            def queue(n: int, runner: JobRunner) -> list[JobRecord]:
                barrier.wait()
                mine = [alone.ask(f"{n} asks {count}", notify=False) for count in range(6)]
                runner.notify()
                return mine

            with ThreadPoolExecutor(2) as pool:
                parts = [pool.submit(queue, 0, alone.runner), pool.submit(queue, 1, other)]
                jobs = [job for part in parts for job in part.result()]
            assert alone.runner.wait_idle(PATIENCE)
            assert other.wait_idle(PATIENCE)
        assert [(alone.job(job).state, alone.job(job).attempts) for job in jobs] == [(JobState.DONE, 1)] * 12
        assert len(alone.memories()) == 12

    # --- a crash half-way -------------------------------------------------------------------------------------------

    def test_a_killed_executors_job_is_taken_over(self, short_lease: Bench) -> None:
        self.need(ExecutorCapability.KILLABLE)
        job = short_lease.ask("[hold:crash] half-way")
        after = short_lease.ask("after it")
        short_lease.until(lambda: bool(short_lease.begun(job)), "the training to begin")
        self.kill(short_lease.begun(job))
        let_go(short_lease.home, "crash")
        short_lease.settle()
        assert [short_lease.job(one).state for one in (job, after)] == [JobState.DONE] * 2
        assert short_lease.job(job).attempts >= 2
        assert len(set(short_lease.begun(job))) >= 2
        assert short_lease.memories() == sorted([job.question, after.question])


def _begun_in(bench: Bench) -> list[str]:
    """First letters of what began in the namespace of ``bench``, in order, without what was held."""
    mine = [start.question for start in starts(bench.home) if start.question.endswith(f"({bench.namespace})")]
    return [question[0] for question in mine if not question.startswith("[hold")]
