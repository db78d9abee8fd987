"""Threads and processes on one queue and one bank: nobody gets a job twice, no revision is lost."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from bank_helpers import MODEL, RECIPE, Learn, trained, unit
from claimers import drain, drain_in_process
from forks import forks

from elm_agent.records import JobState, KeyKind, MemoryState
from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.database import Database

JOBS = 24
X = unit(1, 0, 0, 0)


def fill(bank: Bank) -> None:
    for n in range(JOBS):
        bank.jobs.enqueue("default", f"question {n}", task="math", model_id=MODEL.id, recipe=RECIPE)


def test_eight_threads_claim_every_job_once(bank: Bank) -> None:
    fill(bank)
    with ThreadPoolExecutor(8) as pool:
        claimed = [job for part in pool.map(lambda n: drain(bank.jobs, f"w{n}"), range(8)) for job in part]
    assert len(claimed) == JOBS
    assert max(Counter(claimed).values()) == 1


def test_three_processes_claim_every_job_once(bank: Bank, database_url: str) -> None:
    fill(bank)
    with ProcessPoolExecutor(3, mp_context=forks()) as pool:
        parts = pool.map(drain_in_process, [database_url] * 3, ["a", "b", "c"])
        claimed = [job for part in parts for job in part]
    assert len(claimed) == JOBS
    assert max(Counter(claimed).values()) == 1
    assert bank.jobs.counts()[JobState.RUNNING] == JOBS


def test_eight_threads_queue_one_experience_once(bank: Bank) -> None:
    start = threading.Barrier(8)

    def enqueue(_: int) -> tuple[str, bool]:
        start.wait()
        job, created = bank.jobs.enqueue("default", "same", task="math", model_id=MODEL.id, recipe=RECIPE)
        return job.id, created

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(enqueue, range(8)))
    assert len({job_id for job_id, _ in results}) == 1
    assert sum(created for _, created in results) == 1


def test_changes_at_once_leave_no_gap_and_no_reader_behind(bank: Bank, database_url: str) -> None:
    fill(bank)
    other = Bank(Database.open(database_url), bank.tensors)
    stop = threading.Event()

    def work(n: int) -> None:
        while (lease := bank.jobs.claim(f"w{n}", lease_seconds=600)) is not None:
            memory = bank.publish(
                lease, trained(X), task="math", model=MODEL, recipe=RECIPE, state=MemoryState.ACTIVE, reason=None
            )
            if n == 0:
                bank.transition("default", memory.id, MemoryState.RETIRED, actor="t", reason=None)

    def watch() -> int:
        most = 0
        while not stop.is_set():
            most = max(most, len(other.nearest("default", KeyKind.INPUT, X, JOBS)))
        return most

    with ThreadPoolExecutor(5) as pool:
        watcher = pool.submit(watch)
        for worker in [pool.submit(work, n) for n in range(4)]:
            worker.result()
        stop.set()
        watcher.result()
    active = {memory.id for memory in bank.memories("default", state=MemoryState.ACTIVE)}
    assert {hit.memory_id for hit in other.nearest("default", KeyKind.INPUT, X, JOBS)} == active
    events = bank.events("default")
    assert [event.revision for event in events] == list(range(1, len(events) + 1))
    assert len(events) == 3 * JOBS + (JOBS - len(active))
    other.close()


def test_two_processes_bind_at_once(bank: Bank, database_url: str, learn: Learn) -> None:
    other = Bank(Database.open(database_url), bank.tensors)
    start = threading.Barrier(2)

    def bind(one: Bank) -> None:
        start.wait()
        one.bind("fresh", MODEL)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(bind, [bank, other]))
    assert [info.name for info in bank.namespaces()] == ["default", "fresh"]
    assert learn("q", X, namespace="fresh").revision == 3
    other.close()
