"""Agents and workers, threads and processes, all at once on one bank; then it is counted what they left.

``PYTHONPATH=tests python tests/faults/crowd.py --operations 10000`` prints the counts on SQLite, with ``--postgres``
on PostgreSQL; ``test_crowd`` does some hundred. An operation is one acknowledged act of an agent: a job queued
(again), or the nearest memory looked up and its use noted. What the workers train comes on top.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from forks import forks
from postgres import fresh_database, temporary_cluster

from elm_agent.bench.filling import use_of
from elm_agent.errors import StoreBusy
from elm_agent.memory.worker import Worker
from elm_agent.records import JobState, KeyKind, Recipe, UseRecord, utcnow
from elm_agent.storage.bank import Bank
from elm_agent.storage.ledger.chain import verify
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.testing.doubles import FakeTrainer, fake_fingerprint, key_of

NAMESPACE = "crowd"
MODEL = fake_fingerprint()
RECIPE = Recipe(steps=1, rollouts=2, virtual_tokens=2)
AGENTS, WORKERS, THREADS = 2, 2, 3  # processes, processes, threads in each of them
LEARN, AGAIN = 0.2, 0.25  # below the first: a new job; below the second: a job that another agent queues too


@dataclass(slots=True)
class Acts:
    """What one agent was told is done."""

    jobs: set[str] = field(default_factory=set)
    uses: set[str] = field(default_factory=set)
    looks: int = 0  # the newest memory was looked for
    behind: list[str] = field(default_factory=list)  # ... and another was found: which was wanted, which came
    waits: list[float] = field(default_factory=list)  # seconds from a memory's time stamp to its first look-up
    busy: int = 0  # refused because a lock was held for too long, and tried again
    operations: int = 0

    def add(self, other: Acts) -> None:
        self.jobs |= other.jobs
        self.uses |= other.uses
        self.waits += other.waits
        self.looks += other.looks
        self.behind += other.behind
        self.busy += other.busy
        self.operations += other.operations


@dataclass(frozen=True, slots=True)
class Outcome:
    """All but the first six have to be 0 or empty; ``wait_ms`` are percentiles 50, 99 and 100."""

    operations: int
    jobs: int
    memories: int
    uses: int
    seconds: float
    wait_ms: tuple[float, float, float]
    jobs_lost: int
    jobs_doubled: int
    uses_lost: int
    behind: tuple[str, ...]
    chain_faults: int


def open_bank(url: str, home: Path) -> Bank:
    return Bank(Database.open(url), LocalTensors(home / "tensors"), index="exact")


def run(url: str, home: Path, operations: int, seed: int = 0) -> Outcome:
    """Let the crowd do ``operations`` on an empty bank, wait for the workers, count."""
    with closing(open_bank(url, home)) as bank:
        bank.bind(NAMESPACE, MODEL)
        began, acts = time.monotonic(), Acts()
        with ProcessPoolExecutor(AGENTS + WORKERS, mp_context=forks()) as pool:
            workers = [pool.submit(_work, url, home) for _ in range(WORKERS)]
            agents = [
                pool.submit(_ask, url, home, operations // AGENTS + (n < operations % AGENTS), seed * 1000 + n)
                for n in range(AGENTS)
            ]
            try:
                for agent in agents:
                    acts.add(agent.result())
            finally:
                (home / "asked").touch()  # the workers end when nothing is left
            _finish(workers)
        return _count(bank, acts, time.monotonic() - began)


def _finish(futures: list[Future[int]]) -> None:
    for future in futures:
        future.result()


def _count(bank: Bank, acts: Acts, seconds: float) -> Outcome:
    done = {job.id for job in bank.jobs.list(NAMESPACE, JobState.DONE)}
    made = [memory.job_id for memory in bank.memories(NAMESPACE)]
    noted = {use.id for use in bank.uses(NAMESPACE)}
    report = verify(bank.database, NAMESPACE)
    waits = sorted(acts.waits) or [0.0]
    p50, p99, most = (round(1000 * waits[int(share * (len(waits) - 1))], 1) for share in (0.5, 0.99, 1.0))
    return Outcome(
        operations=acts.operations,
        jobs=len(acts.jobs),
        memories=len(made),
        uses=len(noted),
        seconds=round(seconds, 1),
        wait_ms=(p50, p99, most),
        jobs_lost=len(acts.jobs - done) + len(acts.jobs - {*made}),
        jobs_doubled=len(made) - len({*made}),
        uses_lost=len(acts.uses - noted),
        behind=tuple(acts.behind),
        chain_faults=int(report.broken is not None),
    )


# --- in the processes of the agents ---------------------------------------------------------------------------


def _ask(url: str, home: Path, operations: int, seed: int) -> Acts:
    acts = Acts()
    with closing(open_bank(url, home)) as bank, ThreadPoolExecutor(THREADS) as pool:
        shares = [operations // THREADS + (n < operations % THREADS) for n in range(THREADS)]
        for part in pool.map(lambda n: _Agent(bank, seed * 100 + n).act(shares[n]), range(THREADS)):
            acts.add(part)
    return acts


class _Agent:
    def __init__(self, bank: Bank, seed: int) -> None:
        self._bank = bank
        self._name = f"agent-{seed}"
        self._random = random.Random(seed)
        self._seen: set[str] = set()
        self.acts = Acts()

    def act(self, operations: int) -> Acts:
        if operations:
            self._learn(new=True)
            self.acts.operations += 1
        while not self._bank.memories(NAMESPACE, limit=1):  # the workers come in a little later
            time.sleep(0.02)
        while self.acts.operations < operations:
            drawn = self._random.random()
            try:
                if drawn < AGAIN:
                    self._learn(new=drawn < LEARN)
                else:
                    self._look()
            except StoreBusy:
                self.acts.busy += 1
            else:
                self.acts.operations += 1
        return self.acts

    def _learn(self, *, new: bool) -> None:
        mine = f"{self._name} asks {self._name}-{self.acts.operations}"  # keys are bags of words: each is unlike any
        question = mine if new else f"all ask {self._random.randrange(20)}"
        job, _ = self._bank.jobs.enqueue(NAMESPACE, question, task="math", model_id=MODEL.id, recipe=RECIPE)
        self.acts.jobs.add(job.id)

    def _look(self) -> None:
        """Ask for the newest memory that is committed: a reader that lags behind would not find it."""
        (memory,) = self._bank.memories(NAMESPACE, limit=1)
        hits = self._bank.nearest(NAMESPACE, KeyKind.INPUT, key_of(memory.question, KeyKind.INPUT), 1)
        self.acts.looks += 1
        if not hits or hits[0].memory_id != memory.id:
            self.acts.behind.append(f"{memory.id} (revision {memory.revision}): {[hit.memory_id for hit in hits]}")
            return
        if memory.id not in self._seen:
            self._seen.add(memory.id)
            self.acts.waits.append((utcnow() - memory.created_at).total_seconds())
        use = _use(memory.id, memory.question, hits[0].similarity)
        self._bank.record_use(use)
        self.acts.uses.add(use.id)


def _use(memory_id: str, question: str, similarity: float) -> UseRecord:
    return use_of(NAMESPACE, memory_id, question=question, similarity=similarity)


# --- in the processes of the workers ---------------------------------------------------------------------------


def _work(url: str, home: Path) -> int:
    taken = 0
    with closing(open_bank(url, home)) as bank:
        while True:
            asked = (home / "asked").exists()
            worker = Worker(
                bank=bank, trainer_for=lambda _task: FakeTrainer(steps=1), model=MODEL, concurrency=THREADS
            )
            taken += worker.run(once=True)
            if asked and worker.idle():
                return taken
            time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        temporary_cluster() if options.postgres else nullcontext("") as server,
        fresh_database(server) if server else nullcontext(f"sqlite:///{folder}/bank.sqlite") as url,
    ):
        print(run(url, Path(folder), options.operations, options.seed))


if __name__ == "__main__":
    main()
