"""What every key index must do, as a pytest class; see ``elm_agent.testing.conformance``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from elm_agent.errors import InputError
from elm_agent.protocols import IndexCapability, KeyIndex
from elm_agent.records import Vector
from elm_agent.testing.index_processes import INPUT, KV, IndexProcesses, entries, unit_vectors


class KeyIndexSuite(IndexProcesses):
    """Judges a ``KeyIndex``. Override ``index``, and ``opener`` and ``folder`` where the index has such.

    ``batch`` is the size of the large batch, ``wide`` a width beyond the limits of indexes that have one.
    """

    batch = 3000
    wide = 6000

    def test_capabilities_are_named(self, index: KeyIndex) -> None:
        assert isinstance(index.capabilities, frozenset)
        assert IndexCapability.BASE in index.capabilities <= set(IndexCapability)
        assert 1 <= len(index.name) <= 32

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

    @pytest.mark.parametrize("k", [-1, 0, 1, 29, 30, 31, 10**6])
    def test_k_is_a_limit(self, index: KeyIndex, k: int) -> None:
        vectors = unit_vectors(30)
        index.apply("a", INPUT, entries([f"m{n:02}" for n in range(30)], vectors), [])
        hits = index.search("a", INPUT, vectors[3], k)
        assert len(hits) == max(0, min(k, 30))
        assert [hit.memory_id for hit in hits[:1]] == ["m03"][: max(k, 0)]
        assert hits == sorted(hits, key=lambda hit: (-hit.similarity, hit.memory_id))

    def test_wide_keys(self, index: KeyIndex) -> None:
        """Above its limit an index may propose roughly, but a key still finds itself."""
        vectors = unit_vectors(40, width=self.wide)
        index.apply("a", KV, entries([f"m{n}" for n in range(40)], vectors), [])
        rough = 1e-5 if IndexCapability.WIDE in index.capabilities else 0.1
        for n in (0, 20, 39):
            best, second = index.search("a", KV, vectors[n], 2)
            assert best.memory_id == f"m{n}"
            assert best.similarity == pytest.approx(1.0, abs=rough)
            assert second.similarity == pytest.approx(
                max(float(vectors[n] @ other) for m, other in enumerate(vectors) if m != n), abs=5 * rough
            )
        with pytest.raises(InputError):
            index.search("a", KV, vectors[0][: self.wide // 2] * np.float32(2**0.5), 1)

    def test_an_exact_index_is_exact(self, index: KeyIndex) -> None:
        if IndexCapability.EXACT not in index.capabilities:
            pytest.skip("this index proposes candidates")
        vectors = unit_vectors(2000, width=32)
        index.apply("a", INPUT, entries([f"m{n:04}" for n in range(2000)], vectors), [])
        matrix = np.array(vectors, dtype=np.float64)
        for query in unit_vectors(5, width=32, seed=9):
            best = np.argsort(-(matrix @ query.astype(np.float64)), kind="stable")[:20]
            assert [hit.memory_id for hit in index.search("a", INPUT, query, 20)] == [f"m{n:04}" for n in best]

    def test_namespaces_that_look_alike(self, index: KeyIndex) -> None:
        """Names that file systems, collections and tables could confuse."""
        spaces = [
            "a",
            "A",
            "a.b",
            "a..b",
            "a_b",
            "a-b",
            "ab",
            "a.b.",
            "x" * 100,
            "x" * 99,
            "con",
            "a/../b",
            "ä",
            "a'b",
        ]
        vectors = unit_vectors(len(spaces))
        for space, vector in zip(spaces, vectors, strict=True):
            index.apply(space, INPUT, entries([f"in {space}"], [vector]), [])
        for space, vector in zip(spaces, vectors, strict=True):
            assert index.ids(space, INPUT) == {f"in {space}"}
            assert [hit.memory_id for hit in index.search(space, INPUT, vector, 9)] == [f"in {space}"]
        index.apply("a.b", INPUT, [], [f"in {space}" for space in spaces])
        assert [len(index.ids(space, INPUT)) for space in spaces] == [int(space != "a.b") for space in spaces]

    def test_scrubbing_keeps_what_it_says(self, index: KeyIndex) -> None:
        vectors = unit_vectors(4)
        for space in ("a", "b"):
            index.apply(space, INPUT, entries(["x", "y"], vectors[:2]), [])
            index.apply(space, INPUT, [], ["x"])
        emptied = index.scrub("a")
        assert index.ids("a", INPUT) in ({"y"}, set())
        assert emptied or index.ids("a", INPUT) == index.ids("b", INPUT) == {"y"}
        index.apply("a", INPUT, entries(["x", "z"], vectors[2:]), [])
        assert index.ids("a", INPUT) >= {"x", "z"}
        assert index.search("a", INPUT, vectors[2], 1)[0].memory_id == "x"

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
