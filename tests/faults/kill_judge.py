"""A bank whose processes are killed, what it acknowledged, and whether all of it is there. Kills nothing itself."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import astuple, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from dying_worker import make_worker
from kill_child import MARK, MODEL, NAMESPACE, RECIPE, Place

from elm_agent.errors import BankMoved, NotFound
from elm_agent.records import EventKind, JobState, KeyKind, MemoryRecord, MemoryState, UseOutcome, utcnow
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.ledger import chain
from elm_agent.storage.moving.move import move
from elm_agent.testing.doubles import key_of

FAR = timedelta(hours=3)  # beyond every grace period


@dataclass(slots=True)
class Tally:
    """What came of the kills at one step. All but the first has to be 0."""

    kills: int = 0
    lost: int = 0  # acknowledged memories, states and uses that are not there
    orphans: int = 0  # findings of the doctor after its own repair
    jobs_lost: int = 0
    doubled: int = 0  # jobs done twice, memories stored twice, two places that take changes
    traces: int = 0  # of purged content in files
    other: int = 0  # answers of the index that differ from the rows, and the like
    said: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not any(astuple(self)[1:-1])

    def wrong(self, what: str, count: int, problem: str) -> None:
        if count:
            setattr(self, what, getattr(self, what) + count)
            self.said.append(problem)


@dataclass(slots=True)
class World:
    """One bank, and what it has acknowledged. ``away``: where it can be moved to."""

    place: Place
    packs: list[Path]
    away: Place | None = None
    active: list[str] = field(default_factory=list)  # memories to work on
    states: dict[str, set[str]] = field(default_factory=dict)  # by memory: the states it may be in
    jobs: dict[str, str | None] = field(default_factory=dict)  # by job: its memory
    uses: dict[str, str] = field(default_factory=dict)  # by use: its memory
    settled: set[str] = field(default_factory=set)  # uses whose outcome is known
    secrets: dict[str, list[bytes]] = field(default_factory=dict)  # by memory: what a purge has to remove


# --- before ---------------------------------------------------------------------------------------------------------


def prepare(world: World, bank: Bank) -> None:
    """Enough active memories to work on, and what is known of all of them."""
    replenish(bank, 10)
    found = bank.memories(NAMESPACE)
    world.states = {memory.id: {memory.state.value} for memory in found}
    world.jobs = {memory.job_id: memory.id for memory in found if memory.job_id}
    for memory in found:
        if memory.id not in world.secrets:
            keys, prompt = bank.keys(NAMESPACE, memory.id), bank.prompt(NAMESPACE, memory.id).prompt_VE
            assert keys.kv is not None
            vectors = [keys.input.tobytes(), keys.kv.tobytes(), prompt.numpy().tobytes()]
            world.secrets[memory.id] = [memory.question.encode(), *vectors]
    world.active = [memory.id for memory in found if memory.state is MemoryState.ACTIVE]


def replenish(bank: Bank, at_least: int) -> None:
    while len(bank.memories(NAMESPACE, state=MemoryState.ACTIVE)) < at_least:
        question = f"What is {MARK} {random.randbytes(8).hex()}?"
        job, _ = bank.jobs.enqueue(NAMESPACE, question, task="math", model_id=MODEL.id, recipe=RECIPE)
        make_worker(bank).run_one()
        job = bank.jobs.get(NAMESPACE, job.id)
        if job.state is not JobState.DONE:
            raise RuntimeError(f"no memory can be made to work on: the job is {job.state}, {job.reason}")


# --- after ----------------------------------------------------------------------------------------------------------


def believe(world: World, said: list[tuple[str, Any]], tally: Tally) -> None:
    """What the bank has acknowledged, and what may or may not have happened."""
    after = {
        "learned": "active",
        "evicted": "retired",
        "restored": "active",
        "purged": "purged",
        "imported": "candidate",
    }
    for what, detail in said:
        if what == "queued":
            world.jobs[detail] = None
        elif what == "used":
            world.uses[detail[0]] = detail[1]
        elif what == "settled":
            world.settled.add(detail)
        elif what in ("evicting", "restoring"):
            world.states |= {name: {"active", "retired"} for name in detail}
        elif what == "purging":
            world.states |= {name: {*world.states[name], "purged"} for name in detail}
        elif what == "failed":
            tally.wrong("other", 1, f"what went on beside it failed: {detail}")
        elif what in after:
            world.states |= {name: {after[what]} for name in detail}


def finish_move(world: World, there: bool, tally: Tally) -> None:
    """Never do both places take changes; the same move again ends it, and the bank is at the other place alone."""
    assert world.away is not None
    with closing(world.place.open()) as one, closing(world.away.open()) as other:
        source, target = (one, other) if there else (other, one)
        tally.wrong("doubled", _takes_changes(source) and _takes_changes(target), "both places take changes")
        move(source, target, actor="mover")
        alone = _takes_changes(target) and not _takes_changes(source)
        tally.wrong("other", not alone, "the bank is not where it was moved to, and there alone")
        moved = chain.verify(target.database, NAMESPACE).broken
        tally.wrong("lost", moved is not None, f"the chain is broken: {moved}")
    if there:
        world.place, world.away = world.away, world.place


def _takes_changes(bank: Bank) -> bool:
    try:
        bank.note_event(NAMESPACE, EventKind.REVIEWED, actor="test", detail={})
    except (BankMoved, NotFound):
        return False
    return True


def judge(world: World, bank: Bank, tally: Tally) -> None:
    """The doctor, a second worker, the doctor again; then everything that was acknowledged has to be there, once."""
    examine(bank, repair=True, now=utcnow() + FAR)
    worker, until = make_worker(bank), time.monotonic() + 300
    while not worker.idle() and time.monotonic() < until:
        worker.run_one()
    left = examine(bank, repair=True, now=utcnow() + FAR)
    for problem in [f"{finding.kind}: {finding.problem}" for finding in left.findings] + list(left.skipped):
        tally.wrong("orphans", 1, problem)
    found = {memory.id: memory for memory in bank.memories(NAMESPACE)}
    stones = {stone.memory_id for stone in bank.tombstones(NAMESPACE)}
    for name, states in world.states.items():
        state = found[name].state.value if name in found else "purged" if name in stones else "gone"
        tally.wrong("lost", state not in states, f"{name} is {state}, was acknowledged as {' or '.join(states)}")
    _judge_uses(world, bank, stones, tally)
    _judge_jobs(world, bank, found, stones, tally)
    hits = {hit.memory_id for hit in bank.nearest(NAMESPACE, KeyKind.INPUT, key_of("any", KeyKind.INPUT), 10_000)}
    active = {name for name, memory in found.items() if memory.state is MemoryState.ACTIVE}
    tally.wrong("other", hits != active, f"{len(hits)} memories are found, {len(active)} are active")
    for name in active:
        bank.prompt(NAMESPACE, name)
    wanted = [text for name in stones for text in world.secrets.pop(name, [])]
    tally.wrong("traces", traces(world.place, wanted), "purged content is still in a file")


def _judge_uses(world: World, bank: Bank, stones: set[str], tally: Tally) -> None:
    uses = {use.id: use for use in bank.uses(NAMESPACE)}
    gone = [use for use, memory_id in world.uses.items() if use not in uses and memory_id not in stones]
    tally.wrong("lost", len(gone), f"uses are gone: {gone}")
    forgotten = [use for use in world.settled if use in uses and uses[use].outcome is not UseOutcome.FIXED]
    tally.wrong("lost", len(forgotten), f"outcomes are gone: {forgotten}")
    world.uses = {use.id: use.memory_id for use in uses.values()}
    world.settled &= set(uses)


def _judge_jobs(world: World, bank: Bank, found: dict[str, MemoryRecord], stones: set[str], tally: Tally) -> None:
    of_job: defaultdict[str | None, list[str]] = defaultdict(list)
    for memory in found.values():
        of_job[memory.job_id].append(memory.id)
    done = {job.id for job in bank.jobs.list(NAMESPACE, JobState.DONE)}
    for job, memory_id in world.jobs.items():
        tally.wrong("jobs_lost", memory_id not in stones and not (job in done and of_job[job]), f"job {job} is lost")
    twice = [job for job, made in of_job.items() if job is not None and len(made) > 1]
    same = [digest for digest, n in Counter(memory.content_digest for memory in found.values()).items() if n > 1]
    tally.wrong("doubled", len(twice) + len(same), f"done twice: {twice}, stored twice: {same}")


def traces(place: Place, wanted: list[bytes]) -> int:
    """How many of the texts and vectors any file of the bank still holds."""
    if not wanted:
        return 0
    data = b"\0".join(path.read_bytes() for path in place.home.rglob("*") if path.is_file())
    return sum(text in data for text in wanted)
