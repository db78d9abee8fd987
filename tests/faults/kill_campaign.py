"""Kills a process at work, again and again, and looks each time whether anything that it was told is lost.

``PYTHONPATH=tests python tests/faults/kill_campaign.py --kills 1040`` prints a table for each back end and for moves
between them; ``test_kills`` runs a few of them. A process that had finished before its moment came is no kill.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kill_child import MODEL, NAMESPACE, Errand, Place, start
from kill_judge import Tally, World, believe, finish_move, judge, prepare, replenish
from postgres import fresh_database, temporary_cluster

from elm_agent.storage.bank import Bank
from elm_agent.storage.moving.move import MOVE_STEPS
from elm_agent.storage.packs.transfer import export_pack

LIVES = 40  # kills that one bank bears, before it has so many memories that looking takes long
PER_PACK = 2
RANDOM = "random moment"
AGAIN = 5  # times that a random moment is chosen anew, when the process had finished before
Point = tuple[str, str]  # (work, step)
Tallies = dict[tuple[str, str, str], Tally]  # by (place, work, step)

_STEPS = {
    "learn": "job.claimed train.step train.done tensor.temporary tensor.durable publish.before_commit "
    "publish.committed index.fed job.done",
    "use": "use.before_commit use.committed outcome.before_commit outcome.committed",
    "count": "uses.before_commit uses.committed outbox.before_commit outbox.committed",
    "evict": "evict.before_commit evict.committed",
    "purge": "purge.before_commit purge.committed purge.files purge.done",
    "import": "adopt.tensors adopt.before_commit adopt.committed",
    "rotate": "rotate.tensor_durable rotate.before_commit rotate.committed rotate.deleted",
}
NAMED: list[Point] = [(work, step) for work, steps in _STEPS.items() for step in steps.split()]
ANY_TIME: list[Point] = [(work, RANDOM) for work in _STEPS]
MOVES: list[Point] = [("move", step) for step in MOVE_STEPS]
_REPEATED = {
    "train.step": (1, 2),
    "rotate.tensor_durable": (1, 2),
    "move.batch": (1, 4, 9),
}  # kill at a later one too


@dataclass(frozen=True, slots=True)
class Where:
    """The back ends of a bank; ``away``: it is moved between SQLite and PostgreSQL."""

    postgres: bool
    index: str
    away: bool = False

    @property
    def named(self) -> list[Point]:
        return MOVES if self.away else NAMED

    @property
    def any_time(self) -> list[Point]:
        return [("move", RANDOM)] if self.away else ANY_TIME


BACK_ENDS = {  # and the share of all kills; Chroma starts a process of its own to be opened, so it has fewer
    "sqlite-exact": (Where(False, "exact"), 0.34),
    "postgres-exact": (Where(True, "exact"), 0.34),
    "sqlite-chroma": (Where(False, "chroma"), 0.06),
    "postgres-chroma": (Where(True, "chroma"), 0.06),
    "move-exact": (Where(False, "exact", away=True), 0.16),
    "move-chroma": (Where(False, "chroma", away=True), 0.04),
}


# --- one kill -----------------------------------------------------------------------------------------------------


def kill_once(world: World, bank: Bank, point: Point, tallies: Tallies, dice: random.Random) -> tuple[bool, Bank]:
    """Let a process work, kill it at its step or at any time, and judge what is left in ``bank``, opened anew.

    Returns whether it was killed at work, and the bank.
    """
    bank.close()
    work, step = point
    named, nth = step != RANDOM, dice.choice(_REPEATED.get(step, (1,)))
    memories = dice.sample(world.active, len(world.active))
    packs = dice.sample(world.packs, 1 if named else 4) if work == "import" else []
    few = memories[:2] if work == "purge" and named else memories
    process, heard = start(world.place, Errand(work, few, packs, world.away, step if named else None, nth))
    said = _listen(heard, process, None if named else dice.uniform(0.0, 0.6 if work == "move" else 0.2))
    process.join(60)
    there = [detail for what, detail in said if what == "moving"][-1:] or [True]
    names = [place.name for place in (world.place, world.away) if place is not None]
    tally = tallies.setdefault((" to ".join(names if there[0] else names[::-1]), work, step), Tally())
    killed = process.exitcode == -signal.SIGKILL and ("finished", None) not in said
    tally.kills += killed
    if not killed and (named or process.exitcode not in (0, -signal.SIGKILL)):
        tally.wrong("other", 1, f"the process ended with {process.exitcode} at {step}")
    believe(world, said, tally)
    if world.away is not None:
        finish_move(world, there[0], tally)
    bank = world.place.open()
    judge(world, bank, tally)
    prepare(world, bank)
    return killed, bank


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


# --- worlds -------------------------------------------------------------------------------------------------------


def make_packs(folder: Path, count: int) -> list[Path]:
    """Small packs of memories that no other bank has."""
    place, packs = Place(f"sqlite:///{folder / 'source.sqlite'}", folder), []
    with closing(place.open()) as bank:
        bank.bind(NAMESPACE, MODEL)
        for n in range(count):
            replenish(bank, PER_PACK * (n + 1))
            newest = [memory.id for memory in bank.memories(NAMESPACE, limit=PER_PACK)]
            packs.append(folder / f"pack{n}.elm")
            export_pack(bank, NAMESPACE, packs[-1], memory_ids=newest, actor="user")
    return packs


@contextmanager
def new_world(home: Path, where: Where, *, server: str | None, encrypted: bool, packs: list[Path]) -> Iterator[World]:
    """``server``: of PostgreSQL, where ``where`` needs one."""
    home.mkdir(parents=True)
    with ExitStack() as opened:
        places = []
        for postgres in (False, True) if where.away else (where.postgres,):
            inner = home / ("postgres" if postgres else "sqlite")
            inner.mkdir()
            if postgres:
                assert server is not None
                url = opened.enter_context(fresh_database(server))
            else:
                url = f"sqlite:///{inner / 'bank.sqlite'}"
            places.append(Place(url, inner, where.index, encrypted))
        world = World(places[0], list(packs), places[1] if where.away else None)
        with closing(world.place.open()) as bank:
            bank.bind(NAMESPACE, MODEL)
            prepare(world, bank)
        yield world


def campaign(
    folder: Path,
    points: list[Point],
    where: Where,
    *,
    server: str | None,
    packs: list[Path],
    dice: random.Random,
    tallies: Tallies,
) -> None:
    """Kill once at each point, in new worlds as needed: encrypted ones for key rotation."""
    for encrypted in (False, True):
        mine = [point for point in points if (point[0] == "rotate") == encrypted]
        for start_at in range(0, len(mine), LIVES):
            home = folder / random.randbytes(6).hex()
            with (
                new_world(home, where, server=server, encrypted=encrypted, packs=packs) as world,
                ExitStack() as opened,
            ):
                bank = world.place.open()
                opened.callback(lambda: bank.close())  # noqa: B023 - the last one, whichever that will be
                for point in mine[start_at : start_at + LIVES]:
                    for _ in range(AGAIN):
                        killed, bank = kill_once(world, bank, point, tallies, dice)
                        if killed or point[1] != RANDOM:
                            break


# --- what came of it ----------------------------------------------------------------------------------------------

COLUMNS = ("kills", "lost", "orphans", "jobs_lost", "doubled", "traces", "other")


def table(tallies: Tallies, *, steps: bool = False) -> str:
    """A line for each place and activity, with ``steps`` also for each step; what was wrong below."""
    lines: dict[tuple[str, str, str], Counter[str]] = {}
    for (place, work, step), tally in tallies.items():
        kind = "" if step == RANDOM else step if steps else "named steps"
        for key in ((place, work, kind or RANDOM), ("all", "", "")):
            lines.setdefault(key, Counter()).update({name: getattr(tally, name) for name in COLUMNS})
    total = lines.pop(("all", "", ""), Counter())
    head = f"{'back end':<34}{'activity':<9}{'killed at':<22}" + "".join(f"{name:>10}" for name in COLUMNS)
    shown = [*sorted(lines.items()), (("all", "", ""), total)]
    rows = [
        f"{place:<34}{work:<9}{kind:<22}" + "".join(f"{counted[name]:>10}" for name in COLUMNS)
        for (place, work, kind), counted in shown
    ]
    said = Counter(problem for tally in tallies.values() for problem in tally.said)
    return "\n".join([head, *rows, *(f"{n} x {problem}" for problem, n in said.most_common(20))])


def spread(kills: int, name: str, dice: random.Random) -> list[Point]:
    """The points of one back end, half of them named steps."""
    where, share = BACK_ENDS[name]
    count = round(kills * share)
    points = [where.named[n % len(where.named)] for n in range(count // 2)]
    points += [where.any_time[n % len(where.any_time)] for n in range(count - len(points))]
    dice.shuffle(points)
    return points


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="on all back ends together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=BACK_ENDS, action="append", help="can be given several times")
    parser.add_argument("--steps", action="store_true", help="a line for each named step")
    args = parser.parse_args()
    tallies, began = Tallies(), time.monotonic()
    # a killed process loses nothing that the kernel has, so memory is as good a disk as any here, and much quicker
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    stopped = suppress(KeyboardInterrupt)  # what was reached by then is worth a table
    with stopped, tempfile.TemporaryDirectory(dir=memory) as folder, temporary_cluster() as server:
        packs = make_packs(Path(folder), 24)
        for name in args.only or BACK_ENDS:
            dice, mine, at = random.Random(f"{args.seed} {name}"), Tallies(), time.monotonic()
            points = spread(args.kills, name, dice)
            try:
                campaign(
                    Path(folder), points, BACK_ENDS[name][0], server=server, packs=packs, dice=dice, tallies=mine
                )
            finally:
                kills = sum(tally.kills for tally in mine.values())
                print(f"{name}: {kills} kills in {time.monotonic() - at:.0f} s\n{table(mine, steps=args.steps)}\n")
                sys.stdout.flush()
                tallies |= {(f"{name}: {place}", *rest): tally for (place, *rest), tally in mine.items()}
    kills, bad = sum(tally.kills for tally in tallies.values()), [t for t in tallies.values() if not t.clean]
    print(
        f"{kills} kills, {len(bad)} kinds of them with findings; seed {args.seed}, {time.monotonic() - began:.0f} s"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
