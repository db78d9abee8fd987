"""Two methods on the same questions: intervals, tests, and how uneven a distribution is. Pure functions of numbers.

Knows nothing of runs or files. What cannot be computed is said in ``note``; no number is made up for it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

LEVEL, RESAMPLES = 0.95, 9999
"""Of every interval, unless asked otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its bootstrap interval. ``low`` and ``high`` are None where ``note`` says why."""

    estimate: float | None
    low: float | None = None
    high: float | None = None
    level: float = LEVEL
    units: int = 0  # what was drawn again: questions, each with all its seeds
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """The exact test on the pairs in which just one of two is right. ``p`` is None where ``note`` says why."""

    only_first: int
    only_second: int
    p: float | None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Concentration:
    """How uneven counts are. ``entropy`` is normalised: 1 when all are alike, 0 when one has everything."""

    total: int
    kinds: int  # with at least one
    pool: int  # kinds that could have been counted
    gini: float | None  # over the pool: 0 when all are alike, 1 - 1 / pool when one has everything
    entropy: float | None
    top_share: float | None
    top3_share: float | None
    note: str | None = None


def mean_interval(
    groups: Mapping[Any, Sequence[float]], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of all values, with a BCa bootstrap interval that draws whole groups (scipy.stats.bootstrap).

    A group holds what belongs together, such as one question's paired differences, a value for each seed: the seeds
    of a question are no independent evidence, so they are drawn together.
    """
    kept = [values for values in groups.values() if len(values)]
    if not kept:
        return Interval(estimate=None, level=level, note="there is no pair to compare")
    sums = np.array([math.fsum(values) for values in kept])
    sizes = np.array([len(values) for values in kept], dtype=float)
    found = Interval(estimate=float(sums.sum() / sizes.sum()), level=level, units=len(kept))
    if len(kept) < 2:
        return replace(found, note="one question has no spread: no interval")
    if len(set(zip(sums.tolist(), sizes.tolist(), strict=True))) == 1:
        return replace(found, note=f"all {len(kept)} questions gave the same difference: no interval")
    low, high = _bootstrap(sums, sizes, level, resamples, seed)
    if not (math.isfinite(low) and math.isfinite(high)):
        return replace(found, note="the bootstrap found no interval: too few questions differ")
    return replace(found, low=low, high=high)


def mcnemar(pairs: Sequence[tuple[bool, bool]]) -> McNemar:
    """Two-sided exact McNemar test (McNemar 1947 with the binomial distribution; scipy.stats.binomtest)."""
    only_first = sum(first and not second for first, second in pairs)
    only_second = sum(second and not first for first, second in pairs)
    differing = only_first + only_second
    if differing == 0:
        note = "there is no pair to compare" if not pairs else f"both are right or wrong alike in all {len(pairs)}"
        return McNemar(only_first=0, only_second=0, p=None, note=f"{note}: no test")
    p = float(stats.binomtest(only_second, differing, 0.5).pvalue)
    return McNemar(only_first=only_first, only_second=only_second, p=p)


def concentration(counts: Sequence[int], *, pool: int | None = None) -> Concentration:
    """How ``counts`` spread over ``pool`` kinds; those that are not listed have none. ``pool=None``: the listed ones.

    Gini: mean absolute difference over twice the mean. Entropy: Shannon's over its maximum, log(pool).
    """
    taken = sorted((count for count in counts if count), reverse=True)
    total, pool = sum(taken), max(len(counts), pool or 0)
    given = {"total": total, "kinds": len(taken), "pool": pool}
    if not total:
        return Concentration(
            **given, gini=None, entropy=None, top_share=None, top3_share=None, note="nothing was counted"
        )
    rising = [0] * (pool - len(taken)) + taken[::-1]
    gini = sum((2 * rank - pool - 1) * count for rank, count in enumerate(rising, 1)) / (pool * total)
    shares = [count / total for count in taken]
    entropy = abs(math.fsum(share * math.log(share) for share in shares)) / math.log(pool) if pool > 1 else None
    note = None if pool > 1 else "one kind alone: its spread has no meaning"
    return Concentration(
        **given, gini=gini, entropy=entropy, top_share=shares[0], top3_share=sum(shares[:3]), note=note
    )


def _bootstrap(sums: np.ndarray, sizes: np.ndarray, level: float, resamples: int, seed: int) -> tuple[float, float]:
    def ratio(sums: np.ndarray, sizes: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(sums.sum(axis=axis) / sizes.sum(axis=axis))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an interval is degenerate; the caller sees that it is not finite
        found = stats.bootstrap(
            (sums, sizes),
            ratio,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            confidence_level=level,
            batch=max(1, 2**20 // len(sums)),
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)
