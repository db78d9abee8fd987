"""The keys of one namespace and kind as rows of float32, and the scan over them. Knows nothing of files or SQL.

A table is an unchanging base, perhaps mapped from a file, whose rows can only be crossed out, and rows of its own
that came later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from elm_agent.errors import InputError
from elm_agent.records import Hit, Vector

Rows = NDArray[np.float32]

_TIE = 1e-6  # above the float32 rounding of a product of unit vectors
_CHUNK = 1024  # rows that are copied or widened to float64 at a time


class KeyTable:
    """Row r of ``base`` (N, width) belongs to ``base_ids[r]``. Not safe from several threads at once."""

    def __init__(self, width: int, base_ids: Sequence[str] = (), base: Rows | None = None) -> None:
        self.width = width
        self._base_ids = base_ids
        self._base: Rows = np.empty((0, width), dtype=np.float32) if base is None else base
        self._base_row: dict[str, int] | None = None  # made at the first change
        self._alive = np.ones(len(base_ids), dtype=np.bool_)  # base rows that still count
        self._crossed = 0
        self._rows: Rows = np.empty((16, width), dtype=np.float32)  # 0 .. len(_ids) - 1 are in use
        self._ids: list[str] = []
        self._row: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._base_ids) - self._crossed + len(self._ids)

    @property
    def changes(self) -> int:
        """How far the table is from its base."""
        return self._crossed + len(self._ids)

    def ids(self) -> Iterator[str]:
        """In the order of ``rows``."""
        yield from (self._base_ids[row] for row in np.flatnonzero(self._alive).tolist())
        yield from self._ids

    def rows(self) -> Iterator[Rows]:
        """All keys in chunks (n, width)."""
        keep = np.flatnonzero(self._alive)
        for start in range(0, len(keep), _CHUNK):
            yield self._base[keep[start : start + _CHUNK]]
        if self._ids:
            yield self._rows[: len(self._ids)]

    def put(self, memory_id: str, vector: Vector) -> None:
        self._cross_out(memory_id)
        row = self._row.get(memory_id)
        if row is None:
            row = len(self._ids)
            if row == len(self._rows):
                self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
            self._ids.append(memory_id)
            self._row[memory_id] = row
        self._rows[row] = vector

    def remove(self, memory_id: str) -> None:
        """The last row takes the place of the removed one."""
        self._cross_out(memory_id)
        row = self._row.pop(memory_id, None)
        if row is None:
            return
        last_id = self._ids.pop()
        if last_id != memory_id:
            self._rows[row] = self._rows[len(self._ids)]
            self._ids[row] = last_id
            self._row[last_id] = row

    def _cross_out(self, memory_id: str) -> None:
        if self._base_row is None:
            self._base_row = {name: row for row, name in enumerate(self._base_ids)}
        row = self._base_row.get(memory_id)
        if row is not None and self._alive[row]:
            self._alive[row] = False
            self._crossed += 1

    def nearest(self, query: Vector, k: int) -> list[Hit]:
        """The k rows of the largest product with ``query`` (width,), ties by id. The table is not empty, k > 0."""
        known = len(self._base_ids)
        scores = np.concatenate([self._base @ query, self._rows[: len(self._ids)] @ query])
        if self._crossed:
            scores[:known][~self._alive] = -np.inf
        if k < len(self):
            # all that could tie with the k-th, so that ties are decided by id and not by luck
            place = len(scores) - k
            picked = np.flatnonzero(scores >= np.partition(scores, place)[place] - _TIE)
        else:
            picked = np.flatnonzero(scores > -np.inf)
        names = [self._base_ids[row] if row < known else self._ids[row - known] for row in picked.tolist()]
        hits = [Hit(name, score) for name, score in zip(names, self._exact(picked, query), strict=True)]
        hits.sort(key=lambda hit: (-hit.similarity, hit.memory_id))
        return hits[:k]

    def _exact(self, picked: NDArray[np.intp], query: Vector) -> list[float]:
        """Scores in float64, each row summed the same way: equal rows get equal scores wherever they lie."""
        wide = query.astype(np.float64)
        known = len(self._base_ids)
        scores: list[float] = []
        for start in range(0, len(picked), _CHUNK):
            chosen = picked[start : start + _CHUNK]  # ascending: base rows first
            old, new = chosen[chosen < known], chosen[chosen >= known] - known
            rows = np.concatenate([self._base[old], self._rows[new]]).astype(np.float64)
            scores.extend(float(score) for score in (rows * wide).sum(axis=1).clip(-1.0, 1.0))
        return scores


def check_vector(vector: Vector, width: int | None = None) -> Vector:
    """The vector, or ``InputError`` unless it is float32, (width,), finite and of unit length."""
    if vector.dtype != np.float32 or vector.ndim != 1 or vector.shape[0] == 0:
        raise InputError(f"a key is a float32 vector; got {vector.dtype} of shape {vector.shape}")
    if width is not None and vector.shape[0] != width:
        raise InputError(f"keys here have width {width}; got {vector.shape[0]}: was it made by another model?")
    length = float(np.linalg.norm(vector))
    if not abs(length - 1.0) < 1e-3:  # also catches NaN
        raise InputError(f"a key has unit length; got {length:.6g}")
    return vector
