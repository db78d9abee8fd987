"""Which node the next worker goes to. Pure: node ids in, a decision out; asks no cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Strategy = Literal["SPREAD", "PACK", "STRICT_SPREAD", "STRICT_PACK"]


@dataclass(frozen=True, slots=True)
class Target:
    """``node``: there, or only rather there (``soft``). Without one, Ray chooses; ``spread``: evenly."""

    node: str | None = None
    soft: bool = False
    spread: bool = False


def target(strategy: Strategy, taken: Sequence[str | None], fitting: Sequence[str]) -> Target | None:
    """Where the next worker goes, or None: nowhere until something changes.

    Args:
        taken: nodes of the workers there are; None for one whose node is not known yet.
        fitting: nodes that are alive and large enough for a worker.
    """
    known = [node for node in taken if node in fitting]
    match strategy:
        case "SPREAD":
            return Target(spread=True)
        case "PACK":
            return Target(known[0], soft=True) if known else Target()
        case "STRICT_SPREAD":
            if None in taken:
                return None
            free = [node for node in fitting if node not in taken]
            return Target(free[0]) if free else None
        case "STRICT_PACK":
            if known:
                return Target(known[0])
            return None if taken else Target()
