"""Lets freed memory be overwritten, for libraries that write parts of their memory to disk without clearing it.

Chroma's graph files are as large as they may become, and what is not used yet is whatever lay there in memory:
vectors that were deleted long ago too. The C library of GNU can fill memory as it is given out and taken back
(``M_PERTURB`` in https://man7.org/linux/man-pages/man3/mallopt.3.html); others cannot.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_M_PERTURB = -6
_PATTERN = 0xA5
_lock = threading.Lock()
_inside = 0


def can_overwrite() -> bool:
    """Whether this process's C library can."""
    return hasattr(ctypes.CDLL(None), "mallopt")


@contextmanager
def overwritten() -> Iterator[None]:
    """Within the block no memory is given out with old content. Without effect where ``can_overwrite`` says no."""
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    global _inside
    if not can_overwrite():
        return
    with _lock:
        was, _inside = _inside, _inside + change
        if bool(was) != bool(_inside):
            ctypes.CDLL(None).mallopt(_M_PERTURB, _PATTERN if _inside else 0)
