"""How cost grows with the bank: ``python -m elm_agent.bench.scale --memories 1000000 --namespaces 10000``.

One bank grows through several sizes, ten times larger each; at each size every operation is timed on it. Namespaces
are as uneven as tenants are: the n-th has about 1/n of the first one's memories (Zipf). Memories are made up, not
learned, and come in by ``Bank.adopt``; tensors are hashed and counted but not kept, unless ``--tensors`` says so.

Times are medians of wall seconds. ``largest`` is the largest namespace, ``typical`` the one in the middle.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from elm_agent.bench import filling
from elm_agent.records import KeyKind, MemoryState, new_id

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank

FIRST = 1000  # memories of the smallest size
SAMPLES = 9


@dataclass(slots=True)
class Size:
    """What was measured at one size: by name of the operation, in the unit that the name says."""

    memories: int
    namespaces: int
    largest: int
    figures: dict[str, float] = field(default_factory=dict)


class Simulation:
    """A growing bank and the clock beside it."""

    def __init__(self, bank: Bank, open_again: Callable[[], Bank], *, width: int, seed: int = 0) -> None:
        self._bank = bank
        self._open_again = open_again
        self._width = width
        self._model = filling.model_of(width)
        self._rng = np.random.default_rng(seed)
        self._sizes: list[int] = []
        self._asked = count()

    def grow(self, memories: int, namespaces: int, tell: Callable[[int], None]) -> Size:
        """Adopt until there are so many; what that took for each memory."""
        wanted = filling.skewed(memories, namespaces)
        before = self._sizes + [0] * (namespaces - len(self._sizes))
        started, busy = time.perf_counter(), time.process_time()
        for number, (target, has) in enumerate(zip(wanted, before, strict=True)):
            if not has:
                self._bank.bind(_name(number), self._model)
            for came in filling.fill(self._bank, _name(number), self._rng, max(target - has, 0), self._width):
                tell(came)
        added = sum(wanted) - sum(before)
        size = Size(sum(wanted), namespaces, wanted[0])
        size.figures["grown by, memories per s"] = added / (time.perf_counter() - started)
        size.figures["grown by, processor ms per memory"] = (time.process_time() - busy) / added * 1000
        self._sizes = wanted
        return size

    def measure(self, size: Size) -> None:
        """Every operation on the bank as it is; the few memories that they add and remove do not matter."""
        for name, seconds in self._timed(size.largest):
            size.figures[name] = seconds
        size.figures["resident memory, MiB"] = _resident()

    def _timed(self, largest: int) -> Iterator[tuple[str, float]]:
        bank, of = self._bank, _name(0)
        typical = _name(len(self._sizes) // 2)
        with closing(self._open_again()) as fresh:
            yield "open, ms", _median(lambda: self._open_again().close()) * 1000
            yield "nearest, first in largest, ms", _once(lambda: self._ask(fresh, of)) * 1000
            yield "nearest, first in typical, ms", _once(lambda: self._ask(fresh, typical)) * 1000
            yield "nearest in largest, ms", _median(lambda: self._ask(fresh, of)) * 1000
            yield "nearest in typical, ms", _median(lambda: self._ask(fresh, typical)) * 1000
        yield "list namespaces, ms", _median(bank.namespaces) * 1000
        yield "list newest 50 of largest, ms", _median(lambda: bank.memories(of, limit=50)) * 1000
        batch = iter([filling.made_up(self._rng, 100, self._width) for _ in range(SAMPLES)])
        yield "adopt 100 into largest, ms", _median(lambda: bank.adopt(of, next(batch), actor="simulation")) * 1000
        ids = [memory.id for memory in bank.memories(of, limit=600)]
        uses = iter(ids)
        yield "record a use, ms", _median(lambda: bank.record_use(filling.use_of(of, next(uses)))) * 1000
        yield from self._jobs()
        yield from self._eviction(of, ids, largest)
        events = [0]

        def verify() -> None:
            from elm_agent.storage.ledger.chain import verify

            report = verify(bank.database, of)
            assert report.broken is None, report.broken
            events[0] = report.events

        seconds = _once(verify)
        yield "verify chain of largest, events per s", events[0] / seconds

    def _jobs(self) -> Iterator[tuple[str, float]]:
        bank, model = self._bank, self._model
        names = [_name(int(number)) for number in self._rng.integers(0, len(self._sizes), SAMPLES)]
        turns = iter(names)

        def enqueue() -> None:
            question = new_id("question")
            bank.jobs.enqueue(next(turns), question, task="math", model_id=model.id, recipe=filling.RECIPE)

        yield "queue a job, ms", _median(enqueue) * 1000
        leases: list[Any] = []

        def claim() -> None:
            leases.append(bank.jobs.claim("simulation", lease_seconds=600, model_id=model.id))

        yield "claim a job, ms", _median(claim) * 1000

        def publish() -> None:
            bank.publish(
                leases.pop(),
                filling.trained(self._rng, self._width),
                task="math",
                model=model,
                recipe=filling.RECIPE,
                state=MemoryState.ACTIVE,
                reason=None,
            )

        yield "publish, ms", _median(publish) * 1000

    def _eviction(self, of: str, ids: list[str], largest: int) -> Iterator[tuple[str, float]]:
        from elm_agent.memory.eviction import Rules, plan, policies_of
        from elm_agent.records import utcnow
        from elm_agent.storage.selection import Selection

        bank = self._bank
        rules = Rules(ttl_days=3650.0, unused_days=3650.0, min_utility=-0.5, capacity=max(largest * 9 // 10, 1))

        def select() -> None:
            list(plan(Selection(bank.database, of), policies_of(rules), now=utcnow()))

        yield "plan eviction of largest, ms per 1,000 memories", _once(select) * 1000 / (largest / 1000)
        batches = iter([ids[start : start + 20] for start in range(0, 20 * SAMPLES, 20)])

        def evict() -> None:
            bank.evict(of, dict.fromkeys(next(batches), "simulated"), actor="simulation")

        yield "evict 20, ms", _median(evict) * 1000
        gone = iter([ids[start : start + 20] for start in range(0, 20 * SAMPLES, 20)])

        def purge() -> None:
            bank.purge(of, next(gone), actor="simulation", reason=None)

        yield "purge 20, ms", _median(purge) * 1000

    def _ask(self, bank: Bank, namespace: str) -> None:
        [query] = filling.unit_rows(self._rng, 1, self._width)
        assert bank.nearest(namespace, KeyKind.INPUT, query, 1)


def _name(number: int) -> str:
    return f"tenant-{number:06d}"


def _once(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _median(call: Callable[[], object]) -> float:
    return statistics.median(_once(call) for _ in range(SAMPLES))


def _resident() -> float:
    """MiB that this process holds now, or at most held where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def disk(folder: Path) -> int:
    """Bytes of all files in ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sizes(memories: int, namespaces: int) -> list[tuple[int, int]]:
    """(memories, namespaces) of each size: ten times more each, the wanted one last."""
    steps = [memories]
    while steps[0] > FIRST:
        steps.insert(0, max(steps[0] // 10, FIRST))
    return [(size, max(1, namespaces * size // memories)) for size in steps]


def table(measured: list[Size]) -> str:
    """Markdown: a row for each figure, a column for each size; ``growth`` is the last over the first."""
    head = ["", *(f"{size.memories:,} in {size.namespaces:,}" for size in measured), "growth"]
    lines = [head, ["---"] + ["---:"] * (len(measured) + 1)]
    lines.append(["memories of the largest namespace", *(f"{size.largest:,}" for size in measured), ""])
    for name in measured[-1].figures:
        found = [size.figures.get(name, float("nan")) for size in measured]
        lines.append([name, *map(_figure, found), f"x {found[-1] / found[0]:.1f}" if found[0] else ""])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def run(
    folder: Path,
    *,
    memories: int,
    namespaces: int,
    width: int,
    url: str | None,
    keep_tensors: bool,
) -> Iterator[Size]:
    """Grow a bank in ``folder`` and yield what each size cost, as soon as it is known."""
    from elm_agent.storage.bank import Bank
    from elm_agent.storage.sql.database import Database
    from elm_agent.storage.tensors.local import LocalTensors

    folder.mkdir(parents=True, exist_ok=True)
    place = url or f"sqlite:///{folder / 'scale.sqlite'}"
    tensors = LocalTensors(folder / "tensors") if keep_tensors else filling.NoTensors()

    def open_bank() -> Bank:
        return Bank(Database.open(place), tensors, index="exact")

    with closing(open_bank()) as bank:
        simulation = Simulation(bank, open_bank, width=width)
        done = 0

        def tell(added: int) -> None:
            nonlocal done
            done += added
            if sys.stderr.isatty() or done % 50_000 < added:
                print(f"\r{done:,} of {memories:,} memories", end="", file=sys.stderr, flush=True)

        for at, of in sizes(memories, namespaces):
            size = simulation.grow(at, of, tell)
            if url is None:
                size.figures["disk, bytes per memory"] = disk(folder) / at
            simulation.measure(size)
            print(file=sys.stderr)
            yield size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=100_000)
    parser.add_argument("--namespaces", type=int, default=1000)
    parser.add_argument("--width", type=int, default=64, help="of prompts and keys")
    parser.add_argument("--tensors", action="store_true", help="keep the tensors, as files")
    parser.add_argument("--postgres", metavar="URL", help="an empty PostgreSQL database instead of SQLite")
    parser.add_argument("--folder", type=Path, help="where the bank grows; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="write the table here (.md), with .json and .png beside it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    given = parser.parse_args()
    with TemporaryDirectory(prefix="elm-scale-") as temporary:
        measured: list[Size] = []
        for size in run(
            given.folder or Path(temporary),
            memories=given.memories,
            namespaces=given.namespaces,
            width=given.width,
            url=given.postgres,
            keep_tensors=given.tensors,
        ):
            measured.append(size)
            if given.out is not None:
                _write(given.out, measured)
    print(json.dumps([asdict(size) for size in measured], indent=1) if given.json else table(measured))


def _write(path: Path, measured: list[Size]) -> None:
    from elm_agent.bench.plots import draw_growth

    about = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".md").write_text(f"{about}\n\n{table(measured)}\n")
    path.with_suffix(".json").write_text(json.dumps([asdict(size) for size in measured], indent=1) + "\n")
    if len(measured) > 1:
        names = [name for name in measured[-1].figures if name.endswith(", ms")]
        curves = {name: [size.figures[name] for size in measured] for name in names}
        draw_growth(
            path.with_suffix(".png"), [size.memories for size in measured], curves, title=f"One bank, {about}"
        )


if __name__ == "__main__":
    main()
