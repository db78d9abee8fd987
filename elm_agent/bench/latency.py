"""What a user waits for, measured: ``python -m elm_agent.bench.latency`` prints a Markdown table.

How long answers take is ``bench speed``'s to measure.

- the ``consolidate`` node and the whole graph without generation, with 10,000 memories in the bank;
- processor time of ``import elm_agent`` and ``elm-agent --help``;
- ``elm-agent ask`` cold (a new process) and warm (a process that has the model).
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elm_agent.settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from elm_agent.runtime import Runtime

Row = tuple[str, str]


def processor_seconds(*command: str, repeats: int = 5) -> float:
    """Median user plus system time of a child process."""
    times = []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(times)


def start_up() -> Iterator[Row]:
    program = str(Path(sys.executable).with_name("elm-agent"))
    for name, command in (
        ("`import elm_agent`", (sys.executable, "-c", "import elm_agent")),
        ("`elm-agent --help`", (program, "--help")),
    ):
        yield f"{name}, processor time, median of 5", f"{processor_seconds(*command):.3f} s"


def asking(settings: Settings) -> Iterator[Row]:
    """Wall seconds of one question in a new process, and in a process that has the model."""
    program = str(Path(sys.executable).with_name("elm-agent"))
    with tempfile.TemporaryDirectory() as home:
        cold = []
        for _ in range(3):
            started = time.perf_counter()
            command = (program, "ask", "What is 7 times 8?", "--home", home, "--no-learn")
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            cold.append(time.perf_counter() - started)
        yield "`elm-agent ask`, cold (new process), median of 3", f"{statistics.median(cold):.1f} s"

        from elm_agent.integrations.langgraph import build_graph
        from elm_agent.runtime import open_runtime

        with open_runtime(settings, home=Path(home), learn=False) as runtime:
            graph = build_graph(runtime)
            graph.invoke({"question": "What is 7 times 8?"})
            warm = [_seconds(lambda: graph.invoke({"question": "What is 7 times 8?"})) for _ in range(5)]
        yield "the same, warm (model in memory), median of 5", f"{statistics.median(warm):.2f} s"


def graph_without_generation(*, memories: int, repeats: int = 50) -> Iterator[Row]:
    """The graph with a model that answers at once: what retrieval, routing and the job row cost on SQLite."""
    from elm_agent.integrations.langgraph import build_graph

    name = f"with {memories:,} memories, median of {repeats} (worst)"
    with _filled_runtime(memories) as runtime:
        graph = build_graph(runtime)
        graph.invoke({"question": "the first question reads the keys"})
        whole, node = [], []
        for number in range(repeats):
            started, before = time.perf_counter(), 0.0
            for mode, chunk in graph.stream({"question": f"question {number}"}, stream_mode=["updates", "values"]):
                if mode == "updates" and "verify_and_route" in chunk:
                    before = time.perf_counter()
            whole.append(time.perf_counter() - started)
            node.append(time.perf_counter() - before)
        yield f"graph without generation, {name}", _ms(whole)
        yield f"its `consolidate` node (use and job rows, both synced to disk), {name}", _ms(node)
        syncs = [_seconds(partial(_synced_write, runtime.settings.home, number)) for number in range(repeats)]
        yield f"for comparison: one 4 KiB file written and synced on this disk, median of {repeats}", _ms(syncs)


def _synced_write(folder: Path, number: int) -> None:
    with (folder / f"sync-{number}").open("wb", buffering=0) as file:
        file.write(b"x" * 4096)
        os.fsync(file.fileno())


def _ms(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.1f} ms ({max(seconds) * 1000:.1f} ms)"


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@contextmanager
def _filled_runtime(memories: int) -> Iterator[Runtime]:
    """A runtime whose model answers at once, and whose bank holds copies of one memory under random keys."""
    from elm_agent.runtime import open_runtime
    from elm_agent.testing.doubles import FakeModel, FakeTrainer

    with tempfile.TemporaryDirectory() as home:
        options: dict[str, Any] = {"home": Path(home), "index": "exact", "worker": {"mode": "external"}}
        with open_runtime(Settings(**options), model=FakeModel(), trainer=FakeTrainer()) as runtime:
            namespace = runtime.settings.namespace
            runtime.bank.jobs.enqueue(
                namespace, "seed", task="math", model_id=runtime.model.fingerprint.id, recipe=runtime.recipe
            )
            runtime.worker().run(once=True)
            _multiply(runtime, memories)
            yield runtime


def _multiply(runtime: Runtime, memories: int) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    with runtime.bank.database.write() as session:
        connection = session.connection()

        def rows(table: str) -> list[dict[str, Any]]:
            return [dict(row) for row in connection.exec_driver_sql(f"SELECT * FROM {table}").mappings()]

        def insert(table: str, new: list[dict[str, Any]]) -> None:
            names = ", ".join(new[0])
            values = ", ".join(f":{name}" for name in new[0])
            connection.exec_driver_sql(f"INSERT INTO {table} ({names}) VALUES ({values})", new)

        [memory], keys, outbox = rows("memories"), rows("memory_keys"), rows("outbox")
        ids = [f"mem_copy{number:014d}" for number in range(1, memories)]
        revision = memory["revision"]
        insert("memories", [memory | {"id": name, "revision": revision + n} for n, name in enumerate(ids, 1)])
        insert(
            "memory_keys",
            [key | {"memory_id": name, "vector": _unit(rng, key["width"])} for name in ids for key in keys],
        )
        insert(
            "outbox",
            [row | {"memory_id": name, "revision": revision + n} for n, name in enumerate(ids, 1) for row in outbox],
        )
        connection.exec_driver_sql("UPDATE namespaces SET revision = ?", (revision + len(ids),))


def _unit(rng: np.random.Generator, width: int) -> bytes:
    import numpy as np

    vector = rng.standard_normal(width)
    return bytes((vector / np.linalg.norm(vector)).astype("<f4").tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--memories", type=int, default=10_000)
    parser.add_argument("--skip-model", action="store_true", help="only what needs no language model")
    given = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| what | measured |\n| --- | --- |")
    for row in _rows(given):
        print(f"| {row[0]} | {row[1]} |", flush=True)


def _rows(given: argparse.Namespace) -> Iterator[Row]:
    yield from start_up()
    yield from graph_without_generation(memories=given.memories)
    if not given.skip_model:
        yield from asking(Settings(model=given.model))


if __name__ == "__main__":
    main()
