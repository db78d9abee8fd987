"""What every store must do, as pytest classes: subclass one, give its fixture, and your back end is judged.

    class TestMine(KeyIndexSuite):
        @pytest.fixture
        def index(self, tmp_path):
            made = MyIndex(tmp_path)
            yield made
            made.close()

The promises are those of ``elm_agent.protocols``. Needs pytest, which the library itself does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from elm_agent.errors import InputError
from elm_agent.protocols import IndexEntry, KeyIndex
from elm_agent.records import KeyKind, Vector
from elm_agent.testing.conformance_jobs import ExecutorCapability, JobExecutorSuite
from elm_agent.testing.database_suite import DatabaseCapability, DatabaseSuite
from elm_agent.testing.tensor_suite import TensorStoreSuite

__all__ = [
    "DatabaseCapability",
    "DatabaseSuite",
    "ExecutorCapability",
    "JobExecutorSuite",
    "KeyIndexSuite",
    "TensorStoreSuite",
]

INPUT, KV = KeyKind.INPUT, KeyKind.KV


def unit_vectors(count: int, width: int = 16, seed: int = 0) -> list[Vector]:
    """``count`` random float32 vectors of unit length."""
    drawn = np.random.default_rng(seed).normal(size=(count, width))
    return list((drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32))


def entries(names: Iterable[str], vectors: Iterable[Vector]) -> list[IndexEntry]:
    return [IndexEntry(name, vector) for name, vector in zip(names, vectors, strict=True)]


class KeyIndexSuite:
    """Judges a ``KeyIndex``. Override ``index``; ``batch`` is the size of the large batch."""

    batch = 3000

    @pytest.fixture
    def index(self) -> KeyIndex:
        raise NotImplementedError("give a fixture `index` that yields an empty KeyIndex")

    def test_empty(self, index: KeyIndex) -> None:
        (query,) = unit_vectors(1)
        assert index.search("nobody", INPUT, query, 5) == []
        assert index.ids("nobody", INPUT) == set()
        index.apply("nobody", INPUT, [], ["unknown"])
        assert index.ids("nobody", INPUT) == set()

    def test_order_and_similarity(self, index: KeyIndex) -> None:
        vectors = unit_vectors(100)
        index.apply("a", INPUT, entries([f"m{n:03}" for n in range(100)], vectors), [])
        query = unit_vectors(1, seed=1)[0]
        cosines = np.array(vectors, dtype=np.float64) @ query
        hits = index.search("a", INPUT, query, 7)
        assert [hit.memory_id for hit in hits] == [f"m{n:03}" for n in np.argsort(-cosines)[:7]]
        assert [hit.similarity for hit in hits] == pytest.approx(sorted(cosines, reverse=True)[:7], abs=1e-5)

    def test_bounds(self, index: KeyIndex) -> None:
        vector = unit_vectors(1)[0]
        index.apply("a", INPUT, entries(["same", "opposite"], [vector, -vector]), [])
        hits = index.search("a", INPUT, vector, 10)
        assert [hit.memory_id for hit in hits] == ["same", "opposite"]
        assert [hit.similarity for hit in hits] == pytest.approx([1.0, -1.0], abs=1e-5)
        assert all(-1.0 <= hit.similarity <= 1.0 for hit in hits)
        assert index.search("a", INPUT, vector, 0) == []

    def test_ties_go_by_id(self, index: KeyIndex) -> None:
        vector = unit_vectors(1)[0]
        names = ["d", "b", "e", "a", "c"]
        index.apply("a", INPUT, entries(names, [vector] * 5), [])
        assert [hit.memory_id for hit in index.search("a", INPUT, vector, 3)] == ["a", "b", "c"]
        assert [hit.memory_id for hit in index.search("a", INPUT, vector, 9)] == ["a", "b", "c", "d", "e"]

    def test_the_same_change_twice_is_one_change(self, index: KeyIndex) -> None:
        vectors = unit_vectors(3)
        for _ in range(2):
            index.apply("a", INPUT, entries(["x", "y", "z"], vectors), ["y", "never"])
        assert index.ids("a", INPUT) == {"x", "z"}
        assert len(index.search("a", INPUT, vectors[0], 10)) == 2

    def test_an_upsert_replaces(self, index: KeyIndex) -> None:
        old, new = unit_vectors(2)
        index.apply("a", INPUT, entries(["x"], [old]), [])
        index.apply("a", INPUT, entries(["x"], [new]), [])
        (hit,) = index.search("a", INPUT, new, 5)
        assert hit.similarity == pytest.approx(1.0, abs=1e-5)

    def test_within_one_change_the_last_upsert_counts(self, index: KeyIndex) -> None:
        old, new = unit_vectors(2)
        index.apply("a", INPUT, entries(["x", "x"], [old, new]), [])
        (hit,) = index.search("a", INPUT, new, 5)
        assert hit.similarity == pytest.approx(1.0, abs=1e-5)

    def test_the_index_keeps_its_own_copy(self, index: KeyIndex) -> None:
        vector = unit_vectors(1)[0]
        index.apply("a", INPUT, entries(["x"], [given := vector.copy()]), [])
        given[:] = 0
        assert index.search("a", INPUT, vector, 1)[0].similarity == pytest.approx(1.0, abs=1e-5)

    def test_deleted_ids_are_not_found_and_can_come_back(self, index: KeyIndex) -> None:
        vectors = unit_vectors(6)
        names = list("abcdef")
        index.apply("a", INPUT, entries(names, vectors), [])
        index.apply("a", INPUT, [], ["a", "c", "f"])
        assert index.ids("a", INPUT) == {"b", "d", "e"}
        for n, name in enumerate(names):
            assert (index.search("a", INPUT, vectors[n], 1)[0].memory_id == name) == (name in "bde")
        index.apply("a", INPUT, [], names)
        assert index.search("a", INPUT, vectors[0], 5) == []
        index.apply("a", INPUT, entries(["c"], [vectors[2]]), [])
        assert [hit.memory_id for hit in index.search("a", INPUT, vectors[2], 5)] == ["c"]

    def test_namespaces_and_kinds_are_walls(self, index: KeyIndex) -> None:
        short, long = unit_vectors(1)[0], unit_vectors(1, width=24)[0]
        index.apply("a", INPUT, entries(["x"], [short]), [])
        index.apply("a", KV, entries(["y"], [long]), [])
        index.apply("A", INPUT, entries(["z"], [long]), [])
        index.apply("A", INPUT, [], ["x", "y"])
        found = {(ns, kind): index.ids(ns, kind) for ns in ("a", "A", "a-") for kind in (INPUT, KV)}
        assert found == {
            ("a", INPUT): {"x"},
            ("a", KV): {"y"},
            ("A", INPUT): {"z"},
            ("A", KV): set(),
            ("a-", INPUT): set(),
            ("a-", KV): set(),
        }
        assert [hit.memory_id for hit in index.search("a", INPUT, short, 9)] == ["x"]
        assert [hit.memory_id for hit in index.search("A", INPUT, long, 9)] == ["z"]

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda vector: vector.astype(np.float64),
            lambda vector: vector[:-1] / np.linalg.norm(vector[:-1]),
            lambda vector: vector * np.float32(2),
            lambda vector: vector * np.float32("nan"),
            lambda vector: vector[None, :],
        ],
        ids=["float64", "width", "length", "nan", "matrix"],
    )
    def test_a_vector_that_does_not_fit_changes_nothing(
        self, index: KeyIndex, spoil: Callable[[Vector], Vector]
    ) -> None:
        good, other = unit_vectors(2)
        index.apply("a", INPUT, entries(["x"], [good]), [])
        with pytest.raises(InputError):
            index.apply("a", INPUT, entries(["y", "z"], [other, spoil(good)]), ["x"])
        with pytest.raises(InputError):
            index.search("a", INPUT, spoil(good), 1)
        assert index.ids("a", INPUT) == {"x"}

    def test_unicode_ids(self, index: KeyIndex) -> None:
        names = ["größe", "gro\u0308ße", "数学", "🧠 memory", "a'b\"c;--", "x" * 200]
        vectors = unit_vectors(len(names))
        index.apply("a", INPUT, entries(names, vectors), [])
        assert index.ids("a", INPUT) == set(names)
        assert [index.search("a", INPUT, vector, 1)[0].memory_id for vector in vectors] == names
        index.apply("a", INPUT, [], names[:3])
        assert index.ids("a", INPUT) == set(names[3:])

    def test_a_large_batch(self, index: KeyIndex) -> None:
        vectors = unit_vectors(self.batch)
        names = [f"m{n}" for n in range(self.batch)]
        index.apply("a", INPUT, entries(names, vectors), [])
        assert index.ids("a", INPUT) == set(names)
        assert index.search("a", INPUT, vectors[-1], 1)[0].memory_id == names[-1]
        index.apply("a", INPUT, [], names[: self.batch // 2])
        assert index.ids("a", INPUT) == set(names[self.batch // 2 :])
        assert not set(names[: self.batch // 2]) & {hit.memory_id for hit in index.search("a", INPUT, vectors[0], 50)}

    def test_threads(self, index: KeyIndex) -> None:
        vectors = unit_vectors(60)

        def work(n: int) -> list[str]:
            space = f"space{n % 3}"
            index.apply(space, INPUT, entries([f"m{n}"], [vectors[n]]), [f"gone{n}"])
            return [hit.memory_id for hit in index.search(space, INPUT, vectors[n], 1)]

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(work, range(60))) == [[f"m{n}"] for n in range(60)]
        for part in range(3):
            assert index.ids(f"space{part}", INPUT) == {f"m{n}" for n in range(60) if n % 3 == part}

    def test_wiped_is_empty_and_usable(self, index: KeyIndex) -> None:
        vectors = unit_vectors(2)
        index.apply("a", INPUT, entries(["x"], vectors[:1]), [])
        index.wipe()
        index.wipe()
        assert index.ids("a", INPUT) == set()
        assert index.search("a", INPUT, vectors[0], 1) == []
        index.apply("a", INPUT, entries(["y"], vectors[1:]), [])
        assert index.ids("a", INPUT) == {"y"}

    def test_closing_twice_is_harmless(self, index: KeyIndex) -> None:
        index.close()
        index.close()
