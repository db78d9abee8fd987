"""What the SQL database of a bank must do, as a pytest class; see ``elm_agent.testing.conformance``.

For a server that speaks PostgreSQL's or SQLite's dialect but is not one of ours: a managed or a distributed one, or
another build. What is judged is the ledger: schema, chain, queue and their promises under threads and processes.
SQLite in a temporary folder is the smallest that passes; in memory it has a database for each connection, or one
connection for all threads, and neither is a bank.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Any

import pytest

from elm_agent.errors import NotFound, StorageError
from elm_agent.protocols import Observer, Trained
from elm_agent.records import EventKind, JobState, KeyKind, MemoryKeys, MemoryState, Recipe, StepRecord
from elm_agent.softprompt import SoftPrompt
from elm_agent.storage.bank import Bank, Lease
from elm_agent.storage.ledger import chain
from elm_agent.storage.sql.database import Database
from elm_agent.testing.doubles import fake_fingerprint, unit_vector
from elm_agent.testing.memory_stores import MemoryTensors
from elm_agent.testing.processes import StartMethod, context_of

HOME, AWAY = "Home", "home"  # names that differ in case are two namespaces
MODEL, RECIPE = fake_fingerprint(), Recipe(virtual_tokens=1)
NASTY = ["größe", "gro\u0308ße", "数学 🧠", "a'b\"c;-- %s :x \\", "\u202eleft to right", "x" * 20_000, " \t "]


class DatabaseCapability(StrEnum):
    """What a database of a bank can do."""

    BASE = "base"  # one process, any number of threads
    PROCESSES = "processes"  # several processes at once, one of which may be killed at any moment


def opened(url: str) -> Bank:
    """A bank on ``url`` whose tensors are forgotten with the process."""
    return Bank(Database.open(url), MemoryTensors(), index="exact")


def made(question: str, seed: int = 0) -> Trained:
    """What a trainer would return for ``question``."""
    import torch

    prompt = torch.randn((1, MODEL.width), generator=torch.Generator().manual_seed(seed))
    step = StepRecord(
        step=0,
        majority_answer="1",
        vote_share=1.0,
        reward_mean=1.0,
        loss=0.0,
        kl=0.0,
        grad_norm=0.0,
        clip_fraction=0.0,
        tokens=1,
        finished_share=1.0,
        seconds_rollout=0.0,
        seconds_update=0.0,
    )
    keys = MemoryKeys(input=unit_vector(question, MODEL.width), kv=None)
    return Trained(prompt=SoftPrompt(prompt), keys=keys, curve=(step,), rollouts=(), seed=seed, seconds=0.0)


def learn(bank: Bank, namespace: str, question: str) -> str:
    """Queue, claim and publish one question; the memory's id."""
    bank.jobs.enqueue(namespace, question, task="math", model_id=MODEL.id, recipe=RECIPE)
    lease = bank.jobs.claim("suite", lease_seconds=600)
    assert lease is not None
    return publish(bank, lease)


def publish(bank: Bank, lease: Lease, observe: Observer | None = None) -> str:
    question = lease.job.question
    return bank.publish(
        lease,
        made(question, seed=int.from_bytes(hashlib.sha256(question.encode("utf-8", "replace")).digest()[:4], "big")),
        task="math",
        model=MODEL,
        recipe=RECIPE,
        state=MemoryState.ACTIVE,
        reason=None,
        observe=observe,
    ).id


class DatabaseSuite:
    """Judges a database by its URL. Override ``database_url``, an empty database; and ``capabilities``."""

    capabilities = frozenset({DatabaseCapability.BASE, DatabaseCapability.PROCESSES})
    batch = 300  # memories of the large batch
    patience = 120.0  # seconds within which processes must be done
    start_method: StartMethod = "spawn"

    @pytest.fixture
    def database_url(self) -> str:
        raise NotImplementedError("give a fixture `database_url` that yields the URL of an empty database")

    @pytest.fixture
    def bank(self, database_url: str) -> Iterator[Bank]:
        bank = opened(database_url)
        for namespace in (HOME, AWAY):
            bank.bind(namespace, MODEL)
        yield bank
        bank.close()

    def _need(self, capability: DatabaseCapability) -> None:
        if capability not in self.capabilities:
            pytest.skip(f"this database is not {capability.value}")

    # --- one thread ---------------------------------------------------------------------------------------

    def test_concurrent_openers_make_the_schema_once(self, database_url: str) -> None:
        with ThreadPoolExecutor(4) as pool:
            banks = list(pool.map(opened, [database_url] * 4))
        banks[0].bind(HOME, MODEL)
        assert [[info.name for info in bank.namespaces()] for bank in banks] == [[HOME]] * 4
        for bank in banks:
            bank.close()

    def test_what_is_missing_is_said(self, bank: Bank) -> None:
        for ask in (
            lambda: bank.memory(HOME, "mem_x"),
            lambda: bank.memories("nobody"),
            lambda: bank.pin(HOME, "mem_x", True, actor="t"),
            lambda: bank.jobs.get(HOME, "job_x"),
            lambda: chain.verify(bank.database, "nobody"),
        ):
            with pytest.raises(NotFound):
                ask()

    def test_the_same_experience_is_one_job(self, bank: Bank) -> None:
        def ask() -> tuple[str, bool]:
            job, new = bank.jobs.enqueue(HOME, "q", task="math", model_id=MODEL.id, recipe=RECIPE)
            return job.id, new

        first, again = ask(), ask()
        assert (first[1], again) == (True, (first[0], False))

    def test_order(self, bank: Bank) -> None:
        ids = [learn(bank, HOME, f"question {n}") for n in range(5)]
        assert [memory.id for memory in bank.memories(HOME, order="created_at")] == ids
        assert [memory.id for memory in bank.memories(HOME, limit=2, offset=1)] == [ids[3], ids[2]]
        assert [event.revision for event in bank.events(HOME)] == list(range(1, 16))

    def test_namespaces_are_walls(self, bank: Bank) -> None:
        mine, other = learn(bank, HOME, "mine"), learn(bank, AWAY, "other")
        assert [memory.id for memory in bank.memories(HOME)] == [mine]
        with pytest.raises(NotFound):
            bank.memory(HOME, other)
        query = unit_vector("other", MODEL.width)
        assert [hit.memory_id for hit in bank.nearest(HOME, KeyKind.INPUT, query, 9)] == [mine]
        bank.purge(HOME, [mine], actor="t", reason=None)
        assert [memory.id for memory in bank.memories(AWAY)] == [other]
        assert {event.memory_id for event in bank.events(AWAY)} == {other}

    @pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
    def test_text_comes_back_as_it_went_in(self, bank: Bank, text: str) -> None:
        question = f"{text}?"
        memory = learn(bank, HOME, question)
        bank.transition(HOME, memory, MemoryState.RETIRED, actor=text[:100], reason=text)
        assert (bank.memory(HOME, memory).question, bank.memory(HOME, memory).reason) == (question, text)
        event = bank.events(HOME, memory)[-1]
        assert (event.actor, event.note) == (text[:100], text)
        assert chain.verify(bank.database, HOME).broken is None

    def test_a_failure_half_way_undoes_all_of_it(self, bank: Bank) -> None:
        def fail(step: str, _: dict[str, Any]) -> None:
            if step == "publish.before_commit":
                raise StorageError("half-way")

        bank.jobs.enqueue(HOME, "q", task="math", model_id=MODEL.id, recipe=RECIPE)
        lease = bank.jobs.claim("suite", lease_seconds=600)
        assert lease is not None
        with pytest.raises(StorageError, match="half-way"):
            publish(bank, lease, fail)
        assert (bank.memories(HOME), bank.events(HOME)) == ([], [])
        assert bank.jobs.get(lease.job.namespace, lease.job.id).state == JobState.RUNNING
        assert publish(bank, lease) == bank.memories(HOME)[0].id

    def test_a_purge_leaves_a_whole_chain(self, bank: Bank) -> None:
        ids = [learn(bank, HOME, f"question {n}") for n in range(3)]
        bank.purge(HOME, ids[:2], actor="t", reason=None)
        assert [stone.memory_id for stone in bank.tombstones(HOME)] == [ids[1], ids[0]]
        assert [memory.id for memory in bank.memories(HOME)] == [ids[2]]
        assert chain.verify(bank.database, HOME).broken is None

    def test_a_large_batch(self, bank: Bank) -> None:
        ids = [learn(bank, HOME, f"question {n}") for n in range(self.batch)]
        assert set(bank.evict(HOME, dict.fromkeys(ids[: self.batch // 2], "old"), actor="t")) == set(
            ids[: self.batch // 2]
        )
        report = chain.verify(bank.database, HOME)
        assert (report.broken, report.events) == (None, 3 * self.batch + self.batch // 2)

    # --- many at once -------------------------------------------------------------------------------------

    def test_threads_publish_each_job_once(self, bank: Bank) -> None:
        for n in range(40):
            bank.jobs.enqueue((HOME, AWAY)[n % 2], f"q{n}", task="math", model_id=MODEL.id, recipe=RECIPE)
        with ThreadPoolExecutor(6) as pool:
            done = list(pool.map(work_off, [bank] * 6))
        assert sum(done) == 40
        self._all_published(bank, 40)

    def test_processes_publish_each_job_once(self, bank: Bank, database_url: str) -> None:
        self._need(DatabaseCapability.PROCESSES)
        for n in range(40):
            bank.jobs.enqueue((HOME, AWAY)[n % 2], f"q{n}", task="math", model_id=MODEL.id, recipe=RECIPE)
        self._in_processes(3, _work, database_url)
        self._all_published(bank, 40)

    def test_a_killed_process_loses_nothing(self, bank: Bank, database_url: str) -> None:
        self._need(DatabaseCapability.PROCESSES)
        bank.jobs.enqueue(HOME, "q", task="math", model_id=MODEL.id, recipe=RECIPE)
        self._in_processes(1, _die, database_url, status=-signal.SIGKILL)
        assert bank.memories(HOME) == []
        lease = bank.jobs.claim("another", lease_seconds=600)
        assert lease is not None, "the lease of a dead worker runs out"
        publish(bank, lease)
        self._all_published(bank, 1)

    def _all_published(self, bank: Bank, count: int) -> None:
        found = [memory for namespace in (HOME, AWAY) for memory in bank.memories(namespace)]
        assert len({memory.job_id for memory in found}) == len(found) == count
        assert bank.jobs.counts()[JobState.DONE] == count
        for namespace in (HOME, AWAY):
            report = chain.verify(bank.database, namespace)
            assert report.broken is None
            kinds = [event.kind for event in bank.events(namespace)]
            assert kinds.count(EventKind.CREATED) == len(bank.memories(namespace))

    def _in_processes(self, count: int, work: Callable[[str], None], url: str, status: int = 0) -> None:
        context = context_of(self.start_method)  # no connection crosses into the child
        processes = [context.Process(target=work, args=(url,)) for _ in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(self.patience)
        assert [process.exitcode for process in processes] == [status] * count


def work_off(bank: Bank) -> int:
    """Publish every job that is due; how many."""
    done = 0
    while (lease := bank.jobs.claim(f"suite-{os.getpid()}", lease_seconds=600)) is not None:
        publish(bank, lease)
        done += 1
    return done


def _work(url: str) -> None:
    bank = opened(url)
    work_off(bank)
    bank.close()


def _die(url: str) -> None:
    bank = opened(url)
    lease = bank.jobs.claim("doomed", lease_seconds=0.0)
    assert lease is not None

    def die(step: str, _: dict[str, Any]) -> None:
        if step == "publish.before_commit":
            os.kill(os.getpid(), signal.SIGKILL)

    publish(bank, lease, die)
