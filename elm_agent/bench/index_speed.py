"""How fast the exact index opens and answers, beside a plain numpy scan; how often a projection finds the nearest.

``python -m elm_agent.bench.index_speed [--memories 100000] [--repeat 5] [--json]``. Everything is made up, in a
temporary folder; medians. The page cache is warm: what is measured is the work, not the disk.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from elm_agent.bench.filling import NoTensors, fill, model_of, unit_rows
from elm_agent.protocols import IndexEntry
from elm_agent.records import KeyKind
from elm_agent.storage.bank import Bank
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.indexes.projection import WIDTH, project
from elm_agent.storage.indexes.snapshots import Mark
from elm_agent.storage.sql.database import Database

Row = dict[str, float | int | str]

INPUT_WIDTH, KV_WIDTH, KV_KEYS = 576, 5760, 10_000  # of the embedded model
CANDIDATES = 256  # that the bank measures again, see ``search``
SPACE = "default"


def opening(folder: Path, memories: int, repeat: int) -> list[Row]:
    """Open a bank and find once: with every key read through SQL, and with the snapshot that this leaves."""
    url, rng = f"sqlite:///{folder / 'bank.sqlite'}", np.random.default_rng(0)
    bank = Bank(Database.open(url), NoTensors(), index="exact")
    bank.bind(SPACE, model_of(INPUT_WIDTH))
    for _ in fill(bank, SPACE, rng, memories, INPUT_WIDTH):
        pass
    bank.close()
    query = unit_rows(rng, 1, INPUT_WIDTH)[0]

    def open_and_find(directory: Path | None) -> None:
        opened = Bank(Database.open(url), NoTensors(), index="exact", exact=ExactIndex(directory))
        opened.nearest(SPACE, KeyKind.INPUT, query, 1)
        opened.close()

    index = folder / "index"
    rows = [_row("open, first nearest: keys through SQL", memories, lambda: open_and_find(None), repeat)]
    rows.append(_row("open, first nearest: no snapshot yet", memories, lambda: open_and_find(index), 1))
    rows.append(_row("open, first nearest: snapshot mapped", memories, lambda: open_and_find(index), repeat))
    return rows


def scanning(folder: Path, kind: KeyKind, count: int, width: int, repeat: int) -> list[Row]:
    """The 10 nearest of ``count`` keys: the index over its mapped file, and a product and a partition in numpy."""
    rng = np.random.default_rng(1)
    keys, query = unit_rows(rng, count, width), unit_rows(rng, 1, width)[0]
    index = ExactIndex(folder / f"scan-{kind.value}")
    names = [f"mem_{n:08}" for n in range(count)]
    index.apply(SPACE, kind, [IndexEntry(name, key) for name, key in zip(names, keys, strict=True)], [])
    index.keep(SPACE, kind, Mark(1, "bench"), lambda: True)

    def plain() -> list[str]:
        scores = keys @ query
        best = np.argpartition(-scores, 10)[:10]
        return [names[n] for n in best[np.argsort(-scores[best])]]

    assert [hit.memory_id for hit in index.search(SPACE, kind, query, 10)] == plain()
    what = f"nearest 10 of {kind.value} keys of width {width}"
    # in turns, so that a busy machine slows both alike
    ours, theirs = [], []
    for _ in range(max(repeat, 5) * 4):
        ours.append(_seconds(lambda: index.search(SPACE, kind, query, 10)))
        theirs.append(_seconds(plain))
    index.close()
    return [
        {"what": f"{what}: index", "keys": count, "ms": 1000 * median(ours)},
        {"what": f"{what}: plain numpy", "keys": count, "ms": 1000 * median(theirs)},
    ]


def recall(count: int = KV_KEYS, width: int = KV_WIDTH, queries: int = 200) -> list[Row]:
    """How many of the true 1 and 10 nearest are among the candidates of a projection, once these are measured.

    Keys lie in 20 clusters, twice as many in each as there are candidates, at a cosine of about 0.8 to their
    centre; a query is a key that was moved as far.
    """
    rng = np.random.default_rng(2)
    centres = unit_rows(rng, 20, width)
    keys = _moved(rng, centres[rng.integers(0, len(centres), count)])
    asked = _moved(rng, keys[rng.choice(count, queries, replace=False)])
    narrow = np.stack([project(key) for key in keys])
    found = {1: 0, 10: 0}
    for query in asked:
        true = np.argsort(-(keys @ query))[:10]
        rough = np.argpartition(-(narrow @ project(query)), CANDIDATES)[:CANDIDATES]
        measured = rough[np.argsort(-(keys[rough] @ query))][:10]
        for k in found:
            found[k] += len(set(true[:k]) & set(measured[:k]))
    what = f"projection {width} to {WIDTH}, {CANDIDATES} candidates: recall@"
    return [{"what": f"{what}{k}", "keys": count, "share": hits / (k * queries)} for k, hits in found.items()]


def _moved(rng: np.random.Generator, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    moved = rows + 0.75 * unit_rows(rng, len(rows), rows.shape[1])
    result: NDArray[np.float32] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return result


def _row(what: str, keys: int, work: Callable[[], None], repeat: int) -> Row:
    return {"what": what, "keys": keys, "ms": 1000 * median(_seconds(work) for _ in range(repeat))}


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(memories: int, repeat: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="elm-index-") as name:
        folder = Path(name)
        return [
            *opening(folder, memories, repeat),
            *scanning(folder, KeyKind.INPUT, memories, INPUT_WIDTH, repeat),
            *scanning(folder, KeyKind.KV, max(memories // 10, 20), KV_WIDTH, repeat),
            *recall(max(memories // 10, 2 * CANDIDATES), queries=min(200, memories // 10)),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=100_000, help="input keys; a tenth as many KV keys")
    parser.add_argument("--repeat", type=int, default=5, help="medians are of so many")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    rows = measure(options.memories, options.repeat)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        value = f"{row['ms']:>10.1f} ms" if "ms" in row else f"{row['share']:>10.1%}"
        print(f"{row['what']:<62} {row['keys']:>8} {value}")


if __name__ == "__main__":
    main()
