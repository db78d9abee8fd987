"""What a bank costs, SQLite and PostgreSQL side by side: ``python -m elm_agent.bench.costs [--postgres URL]``.

Every figure is the median of ``--repeats`` runs, each on a database of its own state, alternating between the two.
The PostgreSQL database must be empty; what it syncs to disk is its server's business and is printed with the table.
Nearest keys are measured elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from elm_agent.bench import filling
from elm_agent.records import MemoryState, new_id

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank

WIDTH = 576  # E of the default model
OF = "default"


def writes(bank: Bank, rng: np.random.Generator, count: int) -> tuple[float, float, float]:
    """(jobs queued, memories claimed and published, uses recorded) per second, one after the other."""
    model = filling.model_of(WIDTH)
    made = [filling.trained(rng, WIDTH) for _ in range(count)]
    questions = [new_id("question") for _ in made]
    queued = _rate(
        count,
        lambda n: bank.jobs.enqueue(OF, questions[n], task="math", model_id=model.id, recipe=filling.RECIPE),
    )

    def publish(number: int) -> None:
        lease = bank.jobs.claim("costs", lease_seconds=600)
        assert lease is not None
        bank.publish(
            lease,
            made[number],
            task="math",
            model=model,
            recipe=filling.RECIPE,
            state=MemoryState.ACTIVE,
            reason=None,
        )

    published = _rate(count, publish)
    [memory] = bank.memories(OF, limit=1)
    used = _rate(count, lambda _: bank.record_use(filling.use_of(OF, memory.id)))
    return queued, published, used


def chain_rate(bank: Bank) -> float:
    """Events of the ledger verified per second."""
    from elm_agent.storage.ledger.chain import verify

    started = time.perf_counter()
    report = verify(bank.database, OF)
    assert report.broken is None, report.broken
    return report.events / (time.perf_counter() - started)


def measure(
    kinds: dict[str, Callable[[], Bank]], *, memories: int, repeats: int, count: int
) -> Iterator[tuple[str, dict[str, float]]]:
    """(what, figure by kind of database). Writes keep their tensors; the ``memories`` that fill a bank do not."""
    rng = np.random.default_rng(0)
    with ExitStack() as opened:
        banks = {kind: opened.enter_context(closing(make())) for kind, make in kinds.items()}
        for bank in banks.values():
            bank.bind(OF, filling.model_of(WIDTH))
        rates: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
        for _ in range(repeats):
            for kind, bank in banks.items():
                rates[kind].append(writes(bank, rng, count))
        for place, name in enumerate(("jobs queued", "memories claimed and published", "uses recorded")):
            yield f"{name} per s", {kind: statistics.median(run[place] for run in rates[kind]) for kind in kinds}
        before = {kind: bank.database.size() for kind, bank in banks.items()}
        for bank in banks.values():
            filler = type(bank)(bank.database, filling.NoTensors(), index="exact")
            for _ in filling.fill(filler, OF, rng, memories, WIDTH):
                pass
        grown = {kind: (bank.database.size() - before[kind]) / memories for kind, bank in banks.items()}
        yield f"bytes in SQL per memory (key of width {WIDTH} included)", grown
        yield (
            "events verified per s",
            {kind: statistics.median(chain_rate(bank) for _ in range(repeats)) for kind, bank in banks.items()},
        )
        for name, ask in (("ms to open a bank of", False), ("ms to open and find the first nearest of", True)):
            yield (
                f"{name} {memories:,}",
                {kind: _opening(make, rng, repeats, ask=ask) for kind, make in kinds.items()},
            )


def _opening(make: Callable[[], Bank], rng: np.random.Generator, repeats: int, *, ask: bool) -> float:
    """Milliseconds in this process, with everything imported."""
    from elm_agent.records import KeyKind

    times = []
    for query in filling.unit_rows(rng, repeats, WIDTH):
        started = time.perf_counter()
        with closing(make()) as bank:
            if ask:
                assert bank.nearest(OF, KeyKind.INPUT, query, 1)
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def sizes() -> Iterator[tuple[str, float]]:
    """Bytes of one memory outside SQL."""
    from elm_agent.adapters import to_bytes

    [made] = filling.made_up(np.random.default_rng(0), 1, WIDTH)
    data = len(to_bytes(made.prompt))
    yield f"bytes of a tensor of {filling.VIRTUAL_TOKENS} x {WIDTH}, made up here", data
    yield (
        f"bytes of a tensor of 20 x {WIDTH}, as learned by default",
        data + (20 - filling.VIRTUAL_TOKENS) * WIDTH * 4,
    )
    yield f"bytes of a key in the exact index, width {WIDTH} (file, and in memory)", WIDTH * 4


def _rate(count: int, call: Callable[[int], object]) -> float:
    started = time.perf_counter()
    for number in range(count):
        call(number)
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", metavar="URL", default=os.environ.get("ELM_DATABASE_URL"))
    parser.add_argument("--memories", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--count", type=int, default=50, help="writes of each kind in one run")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    from elm_agent.storage.bank import Bank
    from elm_agent.storage.sql.database import Database
    from elm_agent.storage.tensors.local import LocalTensors

    with tempfile.TemporaryDirectory(prefix="elm-costs-") as folder:
        urls = {"SQLite": f"sqlite:///{Path(folder) / 'costs.sqlite'}"}
        if given.postgres:
            urls["PostgreSQL"] = given.postgres

        def opener(kind: str) -> Callable[[], Bank]:
            return lambda: Bank(Database.open(urls[kind]), LocalTensors(Path(folder) / kind), index="exact")

        found = dict(
            measure(
                {kind: opener(kind) for kind in urls},
                memories=given.memories,
                repeats=given.repeats,
                count=given.count,
            )
        )
        outside = dict(sizes())
    if given.json:
        print(json.dumps({"measured": found, "outside": outside}, indent=1))
        return
    about = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{about}; medians of {given.repeats}")
    print(f"\n| | {' | '.join(urls)} |\n| --- |{' ---: |' * len(urls)}")
    for name, values in found.items():
        print(f"| {name} | {' | '.join(f'{values[kind]:,.0f}' for kind in urls)} |")
    for name, value in outside.items():
        print(f"\n{name}: {value:,.0f}")


if __name__ == "__main__":
    main()
