"""How long each view of the page takes: ``python -m elm_agent.bench.page_speed --home FOLDER --memories 100000``.

A made-up bank is filled once into the folder and used again the next time; tensors are counted, not kept. Times are
wall milliseconds from the request to the whole answer, over a socket of this machine, first the one that comes first
and then the median and the longest of the others; CPU milliseconds, of server and browser together, do not depend
on what else the machine does. ``--uses`` are of memories drawn unevenly, one transaction each.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from elm_agent.bench import filling
from elm_agent.records import MemoryState, Route, UseOutcome
from elm_agent.settings import Settings
from elm_agent.storage.bank import Bank
from elm_agent.storage.browsing.memories import Order

WIDTH = 64
NAMESPACE = "default"
REQUESTS = 5
LIST = f"/n/{NAMESPACE}/memories"


@dataclass(frozen=True, slots=True)
class Taken:
    """Milliseconds of one view, and the kilobytes of its page. ``busy``: what the processor worked, in the median."""

    view: str
    first: float
    median: float
    longest: float
    busy: float
    kilobytes: float


def fill(bank: Bank, memories: int, uses: int) -> None:
    """Until there are so many of each. The same dice each time."""
    rng = np.random.default_rng(0)
    bank.bind(NAMESPACE, filling.model_of(WIDTH))
    has = bank.memory_counts()[NAMESPACE][MemoryState.ACTIVE]
    for made in filling.fill(bank, NAMESPACE, rng, max(0, memories - has), WIDTH):
        has += made
        print(f"{has:,} memories", file=sys.stderr)
    missing = uses - len(bank.uses(NAMESPACE, limit=uses))
    ids = [memory.id for memory in bank.memories(NAMESPACE, limit=1000)]
    outcomes, routes = list(UseOutcome), [Route.MEMORY, Route.AGREED, Route.ZERO_SHOT]
    for n in range(missing):
        one = ids[int(len(ids) * rng.random() ** 3)]
        kind = {"outcome": outcomes[rng.integers(len(outcomes))], "route": routes[rng.integers(len(routes))]}
        bank.record_use(filling.use_of(NAMESPACE, one, **kind))
        if n % 5000 == 4999:
            print(f"{n + 1:,} uses", file=sys.stderr)


def views(bank: Bank) -> dict[str, str]:
    """The address of each view, by what it is; deep pages too."""
    newest = bank.memories(NAMESPACE, limit=1)[0].id
    used = next((use.memory_id for use in bank.uses(NAMESPACE, limit=1)), newest)
    lists = {f"memories, {order.value}": f"{LIST}?order={order.value}" for order in Order}
    return {
        "first page": "/",
        **lists,
        "memories, a rare word": f"{LIST}?text=zebra",
        "memories, a frequent word": f"{LIST}?text=times",
        "memories, pinned": f"{LIST}?pinned=yes",
        "memories, retired": f"{LIST}?state=retired",
        "memory, just made": f"{LIST}/{newest}",
        "memory, used": f"{LIST}/{used}",
        "jobs": f"/n/{NAMESPACE}/jobs",
        "jobs as data": f"/n/{NAMESPACE}/jobs.json",
        "flow": f"/n/{NAMESPACE}/flow",
        "map": f"/n/{NAMESPACE}/map",
        "ledger": f"/n/{NAMESPACE}/ledger",
        "ledger, one kind": f"/n/{NAMESPACE}/ledger?kind=evicted",
    }


def measure(url: str, wanted: dict[str, str], *, depth: int) -> Iterator[Taken]:
    """Each view, and the list's page number ``depth``."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        client.get("/static/page.css")
        deep = LIST
        for _ in range(depth):
            found = re.search(r'rel="next" href="([^"]+)"', client.get(deep).text)
            if found is None:
                break
            deep = found[1].replace("&amp;", "&")
        for view, path in {**wanted, f"memories, page {depth + 1}": deep}.items():
            times, busy, size = [], [], 0
            for _ in range(1 + REQUESTS):
                started, worked = time.perf_counter(), time.process_time()
                answer = client.get(path).raise_for_status()
                times.append((time.perf_counter() - started) * 1000)
                busy.append((time.process_time() - worked) * 1000)
                size = len(answer.content)
            middle = statistics.median(times[1:])
            yield Taken(view, times[0], middle, max(times[1:]), statistics.median(busy[1:]), size / 1000)


@contextmanager
def served(bank: Bank) -> Iterator[str]:
    """The page over ``bank`` on a free port, from a thread."""
    import uvicorn

    from elm_agent.api.serving import address, listen
    from elm_agent.web.app import create_app

    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(bank), log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield address(listening)
        finally:
            server.should_exit = True
            thread.join()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m elm_agent.bench.page_speed", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--memories", type=int, default=100_000)
    parser.add_argument("--uses", type=int, default=20_000)
    parser.add_argument("--depth", type=int, default=100)
    chosen = parser.parse_args(arguments)
    with closing(_bank(chosen.home)) as bank:
        fill(bank, chosen.memories, chosen.uses)
        with served(bank) as url:
            print("| view | first, ms | median, ms | longest, ms | CPU, ms | kB |")
            print("| --- | --- | --- | --- | --- | --- |")
            for taken in measure(url, views(bank), depth=chosen.depth):
                times = f"{taken.first:.0f} | {taken.median:.0f} | {taken.longest:.0f} | {taken.busy:.0f}"
                print(f"| {taken.view} | {times} | {taken.kilobytes:.0f} |", flush=True)
    return 0


def _bank(home: Path) -> Bank:
    from elm_agent.storage.sql.database import Database

    home.mkdir(parents=True, exist_ok=True)
    url = Settings(home=home).resolved_database_url
    return Bank(Database.open(url), filling.NoTensors(), index="exact")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
