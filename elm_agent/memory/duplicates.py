"""Near-duplicates among unit vectors, greedy from the best: pure functions of arrays. Knows nothing of memories.

Axes: N memories, best first; E width of a key. Exact, in blocks: N * K * E multiplications for the K that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from elm_agent.records import Hit

BLOCK = 1024
NEIGHBOURS = 16  # asked of an index for each memory
_ROUNDING = 1e-6  # of a float32 product of unit vectors: the same vector twice is a duplicate at 1.0


def near_duplicates(
    keys_NE: NDArray[np.float32], similarity: float, *, staying: int = 0
) -> Iterator[tuple[int, int, float]]:
    """(row, row of a better one that stays, cosine) of each row that is too similar to a better row that stays.

    ``keys_NE``: float32, (N, E), unit rows, best first; a row of zeros is similar to nothing. A row that goes makes
    no other go. The first ``staying`` rows are named like the others, but stay.
    """
    border = similarity - _ROUNDING
    kept_NE = np.empty_like(keys_NE)
    kept: list[int] = []
    for start in range(0, len(keys_NE), BLOCK):
        block_BE = keys_NE[start : start + BLOCK]
        near_B, who_B = _nearest(block_BE, kept_NE[: len(kept)])
        among_BB = block_BE @ block_BE.T
        fresh: list[int] = []  # rows of this block that stay
        for row in range(len(block_BE)):
            found, other = float(near_B[row]), kept[who_B[row]] if kept else -1
            if fresh and float((inner := among_BB[row, fresh]).max()) > found:
                found, other = float(inner.max()), start + fresh[int(inner.argmax())]
            if found >= border:
                yield start + row, other, min(found, 1.0)
            if found < border or start + row < staying:
                fresh.append(row)
        kept_NE[len(kept) : len(kept) + len(fresh)] = block_BE[fresh]
        kept.extend(start + row for row in fresh)


def near_duplicates_by_search(
    ids: Sequence[str],
    keys: Callable[[Sequence[str]], NDArray[np.float32]],
    similarity: float,
    nearest: Callable[[NDArray[np.float32], int], Sequence[Hit]],
    *,
    staying: int = 0,
) -> Iterator[tuple[int, int, float]]:
    """As ``near_duplicates``, for more than a scan can compare: an index is asked for ``NEIGHBOURS`` of each.

    ``ids``: best first; ``keys`` reads some of their vectors. What the index does not find, or has beyond that
    number of neighbours, stays for another pass.
    """
    row_of = {memory_id: row for row, memory_id in enumerate(ids)}
    going: set[int] = set()
    for start in range(0, len(ids), BLOCK):
        for row, key in enumerate(keys(ids[start : start + BLOCK]), start):
            if not key.any():
                continue
            hits = ((row_of.get(hit.memory_id, len(ids)), hit.similarity) for hit in nearest(key, NEIGHBOURS))
            better = [(near, other) for other, near in hits if other < row and other not in going]
            if better and max(better)[0] >= similarity - _ROUNDING:
                near, other = max(better)
                yield row, other, min(near, 1.0)
                if row >= staying:
                    going.add(row)


def _nearest(
    block_BE: NDArray[np.float32], kept_KE: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Highest cosine of each row of the block to a kept row, and which; (-2, 0) where nothing is kept yet."""
    best_B = np.full(len(block_BE), -2.0, dtype=np.float32)
    who_B = np.zeros(len(block_BE), dtype=np.intp)
    for start in range(0, len(kept_KE), 8 * BLOCK):
        cosines_BK = block_BE @ kept_KE[start : start + 8 * BLOCK].T
        at_B = cosines_BK.argmax(axis=1)
        found_B = cosines_BK[np.arange(len(block_BE)), at_B]
        better_B = found_B > best_B
        best_B[better_B], who_B[better_B] = found_B[better_B], start + at_B[better_B]
    return best_B, who_B
