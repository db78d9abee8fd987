"""Many values in pieces: a statement takes 32,766 parameters in SQLite and 65,535 in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

_T = TypeVar("_T")
PIECE = 500


def some(values: Iterable[_T], size: int = PIECE) -> Iterator[list[_T]]:
    """``values`` in order, at most ``size`` at a time."""
    left = iter(values)
    while piece := list(islice(left, size)):
        yield piece
