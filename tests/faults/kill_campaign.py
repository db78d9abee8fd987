"""Kills a process at work, again and again, and looks each time whether anything that it was told is lost.

``PYTHONPATH=tests python tests/faults/kill_campaign.py --kills 1000`` prints a table by step; ``test_kills`` runs a
few of them.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import astuple, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from dying_worker import make_worker
from kill_child import MARK, MODEL, NAMESPACE, RECIPE, Errand, Place, start
from postgres import fresh_database, temporary_cluster

from elm_agent.records import JobState, KeyKind, MemoryRecord, MemoryState, utcnow
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.packs.transfer import export_pack
from elm_agent.testing.doubles import key_of

FAR = timedelta(hours=3)  # beyond every grace period
LIVES = 40  # kills that one bank bears, before it has so many memories that looking takes long
PER_PACK = 2
RANDOM = "random moment"

_STEPS = {
    "learn": "job.claimed train.step train.done tensor.temporary tensor.durable publish.before_commit "
    "publish.committed index.fed job.done",
    "count": "uses.before_commit uses.committed outbox.before_commit outbox.committed",
    "evict": "evict.before_commit evict.committed",
    "purge": "purge.before_commit purge.committed purge.files purge.done",
    "import": "adopt.tensors adopt.before_commit adopt.committed",
    "rotate": "rotate.tensor_durable rotate.before_commit rotate.committed rotate.deleted",
}
NAMED = [(work, step) for work, steps in _STEPS.items() for step in steps.split()]
ANY_TIME = [(work, RANDOM) for work in ("learn", "use", "count", "evict", "purge", "import", "rotate")]


@dataclass(slots=True)
class Tally:
    """What came of the kills at one step. All but the first has to be 0."""

    kills: int = 0
    lost: int = 0  # acknowledged memories, states and uses that are not there
    orphans: int = 0  # findings of the doctor after its own repair
    jobs_lost: int = 0
    doubled: int = 0  # jobs done twice, memories stored twice
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
    """One bank, and what it has acknowledged."""

    place: Place
    packs: list[Path]
    states: dict[str, set[str]] = field(default_factory=dict)  # by memory: the states it may be in
    jobs: dict[str, str | None] = field(default_factory=dict)  # by job: its memory
    uses: dict[str, str] = field(default_factory=dict)  # by use: its memory
    secrets: dict[str, list[bytes]] = field(default_factory=dict)  # by memory: what a purge has to remove


# --- one kill -----------------------------------------------------------------------------------------------------


def kill_once(world: World, work: str, step: str, nth: int, tally: Tally, dice: random.Random) -> None:
    """Let a process work, kill it at ``step`` or at any time, and judge what is left."""
    with closing(world.place.open()) as bank:
        active = prepare(world, bank)
    dice.shuffle(active)
    named = step != RANDOM
    packs = dice.sample(world.packs, 1 if named else 4) if work == "import" else []
    errand = Errand(work, active[:2] if work == "purge" and named else active, packs, step if named else None, nth)
    process, heard = start(world.place, errand)
    said = _listen(heard, process, None if named else dice.uniform(0.0, 0.2))
    process.join(60)
    if process.exitcode == 0 and work in ("purge", "import"):  # it had finished before the random moment came
        tally.kills -= 1
    elif process.exitcode != -signal.SIGKILL:
        tally.wrong("other", 1, f"the process ended with {process.exitcode} at {step}")
    tally.kills += 1
    _believe(world, said)
    with closing(world.place.open()) as bank:
        judge(world, bank, tally)


def _listen(heard: Any, process: Any, delay: float | None) -> list[tuple[str, Any]]:
    said: list[tuple[str, Any]] = []
    try:
        if delay is not None:
            said.append(heard.recv())  # it is ready
            until = time.monotonic() + delay
            while (left := until - time.monotonic()) > 0:
                if heard.poll(left):
                    said.append(heard.recv())
            process.kill()
        while True:
            said.append(heard.recv())
    except EOFError:
        return said


def _believe(world: World, said: list[tuple[str, Any]]) -> None:
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
        elif what in ("evicting", "restoring"):
            world.states |= {name: {"active", "retired"} for name in detail}
        elif what == "purging":
            world.states |= {name: {*world.states[name], "purged"} for name in detail}
        elif what in after:
            world.states |= {name: {after[what]} for name in detail}


def judge(world: World, bank: Bank, tally: Tally) -> None:
    """The doctor, a second worker, the doctor again; then everything that was acknowledged has to be there, once."""
    examine(bank, repair=True, now=utcnow() + FAR)
    worker, until = make_worker(bank), time.monotonic() + 60
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
    uses = {use.id: use.memory_id for use in bank.uses(NAMESPACE)}
    gone = [use for use, memory_id in world.uses.items() if use not in uses and memory_id not in stones]
    tally.wrong("lost", len(gone), f"uses are gone: {gone}")
    _judge_jobs(world, bank, found, stones, tally)
    hits = {hit.memory_id for hit in bank.nearest(NAMESPACE, KeyKind.INPUT, key_of("any", KeyKind.INPUT), 10_000)}
    active = {name for name, memory in found.items() if memory.state is MemoryState.ACTIVE}
    tally.wrong("other", hits != active, f"{len(hits)} memories are found, {len(active)} are active")
    for name in active:
        bank.prompt(NAMESPACE, name)
    wanted = [text for name in stones for text in world.secrets.pop(name, [])]
    tally.wrong("traces", traces(world.place, wanted), "purged content is still in a file")
    world.uses = uses


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


# --- worlds -------------------------------------------------------------------------------------------------------


def prepare(world: World, bank: Bank) -> list[str]:
    """Enough active memories to work on, and what is known of all of them."""
    _replenish(bank, 10)
    found = bank.memories(NAMESPACE)
    world.states = {memory.id: {memory.state.value} for memory in found}
    world.jobs = {memory.job_id: memory.id for memory in found if memory.job_id}
    for memory in found:
        if memory.id not in world.secrets:
            keys, prompt = bank.keys(NAMESPACE, memory.id), bank.prompt(NAMESPACE, memory.id).prompt_VE
            assert keys.kv is not None
            vectors = [keys.input.tobytes(), keys.kv.tobytes(), prompt.numpy().tobytes()]
            world.secrets[memory.id] = [memory.question.encode(), *vectors]
    return [memory.id for memory in found if memory.state is MemoryState.ACTIVE]


def _replenish(bank: Bank, at_least: int) -> None:
    while len(bank.memories(NAMESPACE, state=MemoryState.ACTIVE)) < at_least:
        question = f"What is {MARK} {random.randbytes(8).hex()}?"
        bank.jobs.enqueue(NAMESPACE, question, task="math", model_id=MODEL.id, recipe=RECIPE)
        make_worker(bank).run_one()


def make_packs(folder: Path, count: int) -> list[Path]:
    """Small packs of memories that no other bank has."""
    place, packs = Place(f"sqlite:///{folder / 'source.sqlite'}", folder), []
    with closing(place.open()) as bank:
        bank.bind(NAMESPACE, MODEL)
        for n in range(count):
            _replenish(bank, PER_PACK * (n + 1))
            newest = [memory.id for memory in bank.memories(NAMESPACE, limit=PER_PACK)]
            packs.append(folder / f"pack{n}.elm")
            export_pack(bank, NAMESPACE, packs[-1], memory_ids=newest, actor="user")
    return packs


@contextmanager
def new_world(home: Path, *, server: str | None, index: str, encrypted: bool, packs: list[Path]) -> Iterator[World]:
    """``server``: of PostgreSQL; None: SQLite."""
    home.mkdir(parents=True)
    with ExitStack() as opened:
        url = opened.enter_context(fresh_database(server)) if server else f"sqlite:///{home / 'bank.sqlite'}"
        place = Place(url, home, index, encrypted)
        with closing(place.open()) as bank:
            bank.bind(NAMESPACE, MODEL)
        yield World(place, list(packs))


def campaign(
    folder: Path,
    points: list[tuple[str, str]],
    *,
    server: str | None,
    index: str,
    packs: list[Path],
    dice: random.Random,
    tallies: dict[tuple[str, str], Tally],
) -> None:
    """Kill once at each point, in new worlds as needed: encrypted ones for key rotation."""
    for encrypted in (False, True):
        mine = [point for point in points if (point[0] == "rotate") == encrypted]
        for start_at in range(0, len(mine), LIVES):
            home = folder / random.randbytes(6).hex()
            with new_world(home, server=server, index=index, encrypted=encrypted, packs=packs) as world:
                for work, step in mine[start_at : start_at + LIVES]:
                    tally = tallies.setdefault((work, step), Tally())
                    # of what happens several times, also a later time
                    nth = dice.choice((1, 2)) if step in ("train.step", "rotate.tensor_durable") else 1
                    kill_once(world, work, step, nth, tally, dice)
                    done = sum(one.kills for one in tallies.values())
                    if done % 25 == 0:
                        print(f"{done} kills", file=sys.stderr, flush=True)


def table(tallies: dict[tuple[str, str], Tally]) -> str:
    columns = ("kills", "lost", "orphans", "jobs_lost", "doubled", "traces", "other")
    lines = [f"{'work':<8}{'step':<24}" + "".join(f"{name:>11}" for name in columns)]
    total = Tally()
    for (work, step), tally in tallies.items():
        lines.append(f"{work:<8}{step:<24}" + "".join(f"{getattr(tally, name):>11}" for name in columns))
        for name in columns:
            setattr(total, name, getattr(total, name) + getattr(tally, name))
    lines.append(f"{'all':<32}" + "".join(f"{getattr(total, name):>11}" for name in columns))
    said = Counter(problem for tally in tallies.values() for problem in tally.said)
    return "\n".join([*lines, *(f"{n} x {problem}" for problem, n in said.most_common(20))])


def spread(kills: int, dice: random.Random) -> dict[tuple[bool, str], list[tuple[str, str]]]:
    """Points by (PostgreSQL, index), half of them named steps. Chroma takes seconds to open, so it has few."""
    shares = {(False, "exact"): 0.45, (True, "exact"): 0.45, (False, "chroma"): 0.05, (True, "chroma"): 0.05}
    found: dict[tuple[bool, str], list[tuple[str, str]]] = {}
    for where, share in shares.items():
        count = round(kills * share)
        named = [NAMED[n % len(NAMED)] for n in range(count // 2)]
        points = named + [ANY_TIME[n % len(ANY_TIME)] for n in range(count - len(named))]
        dice.shuffle(points)
        found[where] = points
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("sqlite-exact", "postgres-exact", "sqlite-chroma", "postgres-chroma"))
    args = parser.parse_args()
    dice, tallies, began = random.Random(args.seed), dict[tuple[str, str], Tally](), time.monotonic()
    # a killed process loses nothing that the kernel has, so memory is as good a disk as any here, and much quicker
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    stopped = suppress(KeyboardInterrupt)  # what was reached by then is worth a table
    with stopped, tempfile.TemporaryDirectory(dir=memory) as name, temporary_cluster() as server:
        packs = make_packs(Path(name), 24)
        for (postgres, index), points in spread(args.kills, dice).items():
            where, at = f"{'postgres' if postgres else 'sqlite'}-{index}", time.monotonic()
            if args.only in (None, where):
                of = server if postgres else None
                campaign(Path(name), points, server=of, index=index, packs=packs, dice=dice, tallies=tallies)
                print(f"{where}: {len(points)} kills in {time.monotonic() - at:.0f} s", flush=True)
    print(table(tallies))
    print(f"seed {args.seed}, {time.monotonic() - began:.0f} s")
    return 0 if all(tally.clean for tally in tallies.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
