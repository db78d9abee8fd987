"""A worker dies at every named step of learning and writing. Afterwards the job is done once, and nothing is lost.

Leases last longer than any test: where one has to run out, the test says so in the job's row.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import dying_worker
import pytest
import torch

from elm_agent.protocols import LEARN_STEPS
from elm_agent.records import EventKind, JobRecord, JobState, KeyKind, MemoryState, Recipe, utcnow
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import FindingKind, examine
from elm_agent.storage.sql.schema import JobRow
from elm_agent.testing.doubles import fake_fingerprint, key_of

QUESTION = "What is 7 times 8?"
MODEL = fake_fingerprint()
RECIPE = Recipe(virtual_tokens=3, rollouts=2, steps=2)
FAR = timedelta(hours=3)  # beyond every grace period

# (step, for the nth time): a kill at one step is a kill after the step before it
BEFORE_COMMIT = [
    ("job.claimed", 1),
    ("train.step", 1),
    ("train.step", 2),
    ("train.done", 1),
    ("tensor.temporary", 1),
    ("tensor.durable", 1),
    ("publish.before_commit", 1),
]
AFTER_COMMIT = [("publish.committed", 1), ("index.fed", 1), ("job.done", 1)]


def name_of(point: tuple[str, int]) -> str:
    return f"{point[0]}-{point[1]}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def job(database_url: str, home: Path) -> JobRecord:
    """One queued job of an otherwise empty bank."""
    bank = dying_worker.open_bank(database_url, home, chroma=False)
    bank.bind("default", MODEL)
    queued, created = bank.jobs.enqueue("default", QUESTION, task="math", model_id=MODEL.id, recipe=RECIPE)
    assert created
    bank.close()
    return queued


@pytest.fixture
def reopened(database_url: str, home: Path) -> Iterator[Callable[..., Bank]]:
    opened: list[Bank] = []

    def reopen(*, chroma: bool = False) -> Bank:
        opened.append(dying_worker.open_bank(database_url, home, chroma=chroma))
        return opened[-1]

    yield reopen
    for bank in opened:
        bank.close()


def kill_at(url: str, home: Path, point: tuple[str, int], *, chroma: bool = False) -> None:
    step, nth = point
    process = dying_worker.start(url, home, step=step, nth=nth, chroma=chroma, by=signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, "the worker never came to this step"


def run_out(bank: Bank, job: JobRecord) -> None:
    """The lease of a worker that can say no more: its time has passed."""
    with bank.database.write() as session:
        session.get_one(JobRow, (job.namespace, job.id)).lease_until = job.created_at - timedelta(days=1)


def work_until_done(bank: Bank, job: JobRecord) -> int:
    """Let a second worker work until the job has ended; how many jobs it took."""
    worker, taken, until = dying_worker.make_worker(bank), 0, time.monotonic() + 300
    while bank.jobs.get(job.namespace, job.id).state in (JobState.QUEUED, JobState.RUNNING):
        assert time.monotonic() < until, "nobody took the job over"
        taken += worker.run(once=True)
        time.sleep(0.05)
    return taken + worker.run(once=True)


def check_learned_once(bank: Bank, job: JobRecord) -> None:
    done = bank.jobs.get(job.namespace, job.id)
    (memory,) = bank.memories("default")
    assert (done.state, done.memory_id) == (JobState.DONE, memory.id)
    assert memory.state is MemoryState.ACTIVE
    made = [EventKind.CREATED, EventKind.GATED, EventKind.ACTIVATED]
    assert [event.kind for event in bank.events("default")] == made
    assert bank.episode("default", memory.id).question == QUESTION
    prompt = bank.prompt("default", memory.id)
    assert prompt.prompt_VE.shape == (RECIPE.virtual_tokens, MODEL.width)
    assert bool(torch.isfinite(prompt.prompt_VE).all())
    for kind in KeyKind:
        (hit,) = bank.nearest("default", kind, key_of(QUESTION, kind), 5)
        assert (hit.memory_id, hit.similarity) == (memory.id, pytest.approx(1.0, abs=1e-5))


def check_clean_after_repair(bank: Bank) -> None:
    mended = examine(bank, repair=True, now=utcnow() + FAR)
    assert mended.left == ()
    assert {finding.kind for finding in mended.findings} <= {FindingKind.ORPHAN_TENSOR, FindingKind.TEMPORARY_FILE}
    assert examine(bank, now=utcnow() + FAR).clean
    assert set(bank.tensors.digests("default")) == {memory.tensor_digest for memory in bank.memories("default")}
    assert bank.tensors.temporary(-1) == []


def test_every_named_step_is_a_point() -> None:
    assert {step for step, _ in BEFORE_COMMIT + AFTER_COMMIT} == {*LEARN_STEPS, "job.done"}


@pytest.mark.parametrize("point", BEFORE_COMMIT, ids=name_of)
def test_killed_before_the_commit(
    database_url: str, home: Path, job: JobRecord, reopened: Callable[..., Bank], point: tuple[str, int]
) -> None:
    kill_at(database_url, home, point)
    bank = reopened()
    assert bank.memories("default") == [], "half a memory"
    assert bank.jobs.get(job.namespace, job.id).state is JobState.RUNNING
    run_out(bank, job)
    assert work_until_done(bank, job) == 1
    assert bank.jobs.get(job.namespace, job.id).attempts == 2
    check_learned_once(bank, job)
    check_clean_after_repair(bank)
    check_learned_once(bank, job)


@pytest.mark.parametrize("point", AFTER_COMMIT, ids=name_of)
def test_killed_after_the_commit(
    database_url: str, home: Path, job: JobRecord, reopened: Callable[..., Bank], point: tuple[str, int]
) -> None:
    kill_at(database_url, home, point, chroma=True)
    bank = reopened(chroma=True)
    assert work_until_done(bank, job) == 0, "what was committed was learnt again"
    assert bank.jobs.get(job.namespace, job.id).attempts == 1
    check_learned_once(bank, job)
    assert examine(bank).clean
    check_clean_after_repair(bank)


@pytest.mark.parametrize("point", [("tensor.temporary", 1), ("tensor.durable", 1)], ids=name_of)
def test_the_doctor_comes_before_the_second_worker(
    database_url: str, home: Path, job: JobRecord, reopened: Callable[..., Bank], point: tuple[str, int]
) -> None:
    kill_at(database_url, home, point)
    bank = reopened()
    found = {finding.kind for finding in examine(bank, repair=True, now=utcnow() + FAR).findings}
    left = FindingKind.TEMPORARY_FILE if point[0] == "tensor.temporary" else FindingKind.ORPHAN_TENSOR
    assert found == {FindingKind.STUCK_JOB, left}
    assert list(bank.tensors.digests("default")) == []
    with bank.database.write() as session:  # the doctor queued it for its own far future
        session.get_one(JobRow, ("default", job.id)).run_after = utcnow()
    assert work_until_done(bank, job) == 1
    check_learned_once(bank, job)
    assert examine(bank, now=utcnow() + FAR).clean


def test_a_worker_that_was_paused_cannot_publish_what_another_has_learned(
    database_url: str, home: Path, job: JobRecord, reopened: Callable[..., Bank]
) -> None:
    paused = dying_worker.start(database_url, home, step="tensor.durable", nth=1, chroma=False, by=signal.SIGSTOP)
    bank = reopened()
    until = time.monotonic() + 300
    while not list(bank.tensors.digests("default")):  # it is about to publish
        assert time.monotonic() < until, "the worker never stored its tensor"
        time.sleep(0.05)
    run_out(bank, job)
    assert work_until_done(bank, job) == 1
    memory = bank.memories("default")[0]
    assert paused.pid is not None
    os.kill(paused.pid, signal.SIGCONT)
    paused.join(60)
    assert paused.exitcode == 0, "losing a job is no failure of the worker"
    assert bank.jobs.get(job.namespace, job.id).attempts == 2
    assert bank.memories("default") == [memory]
    check_learned_once(bank, job)
    check_clean_after_repair(bank)
