"""Keys too wide for an index, made narrower: a random projection whose signs anybody can compute again.

Products survive it up to an error of about 1 / sqrt(width) (Johnson and Lindenstrauss 1984; signs instead of
normal variates: Achlioptas 2003, https://doi.org/10.1016/S0022-0000(03)00025-4, theorem 1.1). So its hits are
candidates, and the bank measures them again with the keys themselves. Measured with 10,000 keys of width 5,760
projected to 1,024 and 256 candidates (``python -m elm_agent.bench.index_speed``): the nearest is always among them;
of the ten nearest all are where a cluster has 50 keys, and 87 % where it has 500 that are hardly apart (100 % with
512 candidates, 64 % with 128).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from elm_agent.records import Vector

SEED = 0
WIDTH = 1024  # of a projected key: an error of 0.03 in the cosine, 4 KB a key


def project(vector: Vector, *, width: int = WIDTH, seed: int = SEED) -> Vector:
    """``vector`` (wide,) as a unit vector (width,), float32."""
    narrow: Vector = vector @ signs(len(vector), width, seed)
    return narrow / np.linalg.norm(narrow)


@lru_cache(maxsize=4)
def signs(wide: int, width: int, seed: int) -> NDArray[np.float32]:
    """The matrix (wide, width) of plus and minus one. From a hash, not a generator: the same in every version."""
    count = wide * width
    stream = hashlib.shake_256(f"elm/projection/1/{seed}/{wide}/{width}".encode()).digest((count + 7) // 8)
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=count)
    return (bits.astype(np.float32) * 2 - 1).reshape(wide, width)
