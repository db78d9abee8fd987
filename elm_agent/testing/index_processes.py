"""What a key index must do when there are several processes, or one is killed; a part of ``KeyIndexSuite``."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from elm_agent.protocols import IndexCapability, IndexEntry, KeyIndex
from elm_agent.records import KeyKind, Vector
from elm_agent.testing.processes import StartMethod, context_of

INPUT, KV = KeyKind.INPUT, KeyKind.KV


def unit_vectors(count: int, width: int = 16, seed: int = 0) -> list[Vector]:
    """``count`` random float32 vectors of unit length."""
    drawn = np.random.default_rng(seed).normal(size=(count, width))
    return list((drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32))


def entries(names: Iterable[str], vectors: Iterable[Vector]) -> list[IndexEntry]:
    return [IndexEntry(name, vector) for name, vector in zip(names, vectors, strict=True)]


Opener = Callable[[], KeyIndex]
"""Opens the same index once more; a picklable function, for other processes."""


class IndexProcesses:
    """Needs ``opener`` of an index that is ``DURABLE`` or ``SHARED``, and ``folder`` of one that ``ERASES``."""

    crowd = 300  # entries that a killed process was writing
    kills = 3
    patience = 120.0  # seconds within which a process must have done its part
    start_method: StartMethod = "spawn"

    @pytest.fixture
    def index(self) -> KeyIndex:
        raise NotImplementedError("give a fixture `index` that yields an empty KeyIndex")

    def opener(self, index: KeyIndex) -> Opener:
        """How another process opens the same index."""
        raise NotImplementedError("override `opener`: this index says that it outlives its process")

    def folder(self, index: KeyIndex) -> Path:  # noqa: ARG002
        """Where all files of the index lie."""
        pytest.skip("nobody knows where the files of this index lie")

    def _need(self, index: KeyIndex, capability: IndexCapability) -> None:
        if capability not in index.capabilities:
            pytest.skip(f"this index is not {capability.value}")

    def test_another_process_finds_what_was_applied(self, index: KeyIndex) -> None:
        self._need(index, IndexCapability.DURABLE)
        vectors = unit_vectors(3)
        index.apply("a", INPUT, entries(["x", "y"], vectors[:2]), ["z"])
        opener = self.opener(index)
        if IndexCapability.SHARED not in index.capabilities:
            index.close()
        self._run(_change, opener, {"x", "y"}, vectors[2])
        assert index.ids("a", INPUT) == {"y", "z"}
        assert [hit.memory_id for hit in index.search("a", INPUT, vectors[2], 1)] == ["z"]

    def test_processes_work_beside_each_other(self, index: KeyIndex) -> None:
        self._need(index, IndexCapability.SHARED)
        opener = self.opener(index)
        context = context_of(self.start_method)
        workers = [context.Process(target=_fill, args=(opener, worker)) for worker in range(3)]
        for process in workers:
            process.start()
        for process in workers:
            self._wait(process)
        assert [process.exitcode for process in workers] == [0, 0, 0]
        assert index.ids("a", INPUT) == {f"{worker}.{n}" for worker in range(3) for n in range(1, 20)}
        assert index.ids("b1", INPUT) == {"1"}

    def test_a_killed_process_leaves_whole_entries(self, index: KeyIndex, tmp_path: Path) -> None:
        """Each entry is the old one, the new one, or not there yet; and the index can be used again."""
        self._need(index, IndexCapability.DURABLE)
        opener, old, new = self.opener(index), unit_vectors(self.crowd), unit_vectors(self.crowd, seed=1)
        index.close()
        for kill in range(self.kills):
            begun = tmp_path / f"begun{kill}"
            process = context_of(self.start_method).Process(target=_write_for_ever, args=(opener, self.crowd, begun))
            process.start()
            until = time.monotonic() + self.patience
            while not begun.exists():
                assert process.is_alive(), f"the writing process ended with {process.exitcode}"
                assert time.monotonic() < until
                time.sleep(0.001)
            time.sleep(0.03 * kill)
            process.kill()
            self._wait(process)
            there = index.ids("a", INPUT)
            assert there <= {f"m{n}" for n in range(self.crowd)}
            for n in list(range(self.crowd))[:: self.crowd // 12]:
                best = [index.search("a", INPUT, vectors[n], 1)[0] for vectors in (old, new) if there]
                whole = [hit for hit in best if hit.memory_id == f"m{n}" and hit.similarity > 0.9999]
                assert bool(whole) == (f"m{n}" in there)
            index.apply("a", INPUT, entries(["m0"], [old[0]]), [])
            assert index.search("a", INPUT, old[0], 1)[0].memory_id == "m0"
            index.close()

    def test_scrubbed_files_hold_nothing_that_was_deleted(self, index: KeyIndex) -> None:
        self._need(index, IndexCapability.ERASES)
        folder = self.folder(index)
        secret, other = unit_vectors(2, width=64, seed=5)
        trace = secret.tobytes()[8:104]
        index.apply("a", INPUT, entries(["secret", "other"], [secret, other]), [])
        index.apply("a", INPUT, [], ["secret"])
        index.scrub("a")
        assert [path for path in folder.rglob("*") if path.is_file() and trace in path.read_bytes()] == []

    def _run(self, function: Callable[..., None], *args: object) -> None:
        process = context_of(self.start_method).Process(target=function, args=args)
        process.start()
        self._wait(process)
        assert process.exitcode == 0

    def _wait(self, process: BaseProcess) -> None:
        process.join(self.patience)
        if process.is_alive():
            process.kill()
            process.join()
            pytest.fail(f"a process was not done after {self.patience:g} s")


def _change(opener: Opener, expected: set[str], vector: Vector) -> None:
    index = opener()
    assert index.ids("a", INPUT) == expected
    index.apply("a", INPUT, entries(["z"], [vector]), ["x"])
    index.close()


def _fill(opener: Opener, worker: int) -> None:
    index, vectors = opener(), unit_vectors(20, seed=worker)
    for n, vector in enumerate(vectors):
        index.apply("a", INPUT, entries([f"{worker}.{n}"], [vector]), [f"{worker}.0"] if n else [])
        assert index.search("a", INPUT, vector, 1)[0].memory_id == f"{worker}.{n}"
    index.apply(f"b{worker}", INPUT, entries([str(worker)], vectors[:1]), [])
    index.close()


def _write_for_ever(opener: Opener, crowd: int, begun: Path) -> None:
    index = opener()
    names = [f"m{n}" for n in range(crowd)]
    index.apply("other", INPUT, entries(names[:1], unit_vectors(1)), [])  # what comes first once is done
    for turn in itertools.count():
        if turn == 0:
            begun.write_text(str(os.getpid()))
        index.apply("a", INPUT, entries(names, unit_vectors(crowd, seed=turn % 2)), [])
