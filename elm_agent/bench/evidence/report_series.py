"""What the plots of a report show, as plain numbers: curves over the stream and over training, the map of a bank.

Pure functions of lines; knows nothing of drawing.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from elm_agent.bench.evidence.contract import GenerationLine
from elm_agent.bench.evidence.lines import Key, Lines, grouped, judged
from elm_agent.bench.evidence.routing import MemoryUse, memory_uses


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A curve with its range: over seeds or over memories. ``x`` counts from 1; all of one length."""

    x: tuple[int, ...]
    middle: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    members: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One memory on the map. ``utility``: answers fixed less answers broken."""

    x: float
    y: float
    seed: int
    memory_id: str
    uses: int
    utility: int
    state: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BankMap:
    """Keys of one method's memories on their two principal components, which hold ``explained`` of the variance."""

    points: tuple[Point, ...]
    explained: float | None
    note: str | None


def stream_curves(answers: Lines, unfinished: Container[tuple[str, int]] = ()) -> dict[str, Band]:
    """For each method the share of right answers so far, over the position in the stream; mean and range over seeds.

    A failure stands for nothing: the share stays that of the judged answers before it. Positions before the first
    judged answer of a seed are left out, and ``unfinished`` methods and seeds where the method has a finished one:
    the mean would jump where they end.
    """
    curves = {}
    for method, part in grouped(answers, lambda line: line.method).items():
        seeds = grouped(part, lambda line: line.seed)
        finished = [lines for seed, lines in seeds.items() if (method, seed) not in unfinished]
        shares = [found for lines in finished or seeds.values() if (found := _so_far(lines))]
        if shares:
            curves[method] = _band(shares)
    return curves


def stream_changes(answers: Lines) -> tuple[int, ...]:
    """How many questions come before each part of a stream but the first; none where it does not change."""
    firsts = {part: min(line.position for line in lines) for part, lines in grouped(answers, _part).items() if part}
    return tuple(sorted(firsts.values())[1:])


def _part(line: GenerationLine) -> str:
    return line.part


def reward_curves(learned: Lines, name: str = "vote_share") -> dict[str, Band]:
    """For each method the value ``name`` of its memories over the training steps: median and quartiles.

    A memory that stopped before the others keeps its last value: it is settled, not gone.
    """
    curves = {}
    for method, part in grouped(learned, lambda line: line.method).items():
        runs = [[float(step[name]) for step in line.curve if _is_number(step.get(name))] for line in part]
        runs = [run for run in runs if run]
        if not runs:
            continue
        longest = max(map(len, runs))
        columns = np.array([run + run[-1:] * (longest - len(run)) for run in runs])
        low, middle, high = (tuple(row.tolist()) for row in np.quantile(columns, (0.25, 0.5, 0.75), axis=0))
        steps = tuple(range(1, longest + 1))
        curves[method] = Band(x=steps, middle=middle, low=low, high=high, members=len(runs))
    return curves


def rank_curves(uses: Sequence[MemoryUse]) -> list[float]:
    """Share of all retrievals that the 1, 2, ... most retrieved memories took, mean over seeds."""
    seeds = grouped_uses(uses)
    longest = max(map(len, seeds), default=0)
    curves = []
    for counts in seeds:
        shares = [total / sum(counts) for total in accumulate(sorted(counts, reverse=True))]
        curves.append(shares + [1.0] * (longest - len(shares)))
    return [sum(column) / len(column) for column in zip(*curves, strict=True)]


def grouped_uses(uses: Sequence[MemoryUse]) -> list[list[int]]:
    """Counts of uses, one list for each seed."""
    seeds: dict[int, list[int]] = {}
    for use in uses:
        seeds.setdefault(use.seed, []).append(use.uses)
    return list(seeds.values())


def bank_map(learned: Lines, answers: Lines, reference: Mapping[Key, bool]) -> BankMap:
    """The keys of what one method learned, projected (PCA, all seeds together), with what each memory did."""
    made = [line for line in learned if line.memory_id and line.key and line.failure is None]
    if not made:
        return BankMap(points=(), explained=None, note="no keys are stored with this run: the map is left out")
    widths = sorted({len(line.key or ()) for line in made})
    if len(widths) > 1:
        return BankMap(points=(), explained=None, note=f"keys have several widths {widths}: the map is left out")
    keys = np.array([line.key for line in made], dtype=float)
    if not np.isfinite(keys).all():
        return BankMap(points=(), explained=None, note="a key is not finite: the map is left out")
    places, explained = project(keys)
    if explained is None:
        return BankMap(points=(), explained=None, note="all keys are the same: the map is left out")
    uses = {(use.seed, use.memory_id): use for use in memory_uses([a for a in answers if a.memory_id], reference)}
    points = (_point(line, place, uses) for line, place in zip(made, places.tolist(), strict=True))
    return BankMap(points=tuple(points), explained=explained, note=None)


def project(keys_ME: np.ndarray) -> tuple[np.ndarray, float | None]:
    """The first two principal components of the rows, (M, 2), and their share of the variance; None without any.

    Signs are fixed, so that the same keys give the same picture: each axis has its largest loading positive.
    """
    centred = keys_ME - keys_ME.mean(axis=0)
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    total = float((spread**2).sum())
    if total <= 1e-18 * max(1.0, float((keys_ME**2).sum())):
        return np.zeros((len(keys_ME), 2)), None
    axes = axes[:2]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    places = centred @ axes.T
    if places.shape[1] < 2:
        places = np.hstack([places, np.zeros((len(places), 2 - places.shape[1]))])
    return places, float((spread[:2] ** 2).sum()) / total


def _point(line: GenerationLine, place: Sequence[float], uses: Mapping[tuple[int, str], MemoryUse]) -> Point:
    memory_id = line.memory_id or ""
    use = uses.get((line.seed, memory_id))
    return Point(
        x=place[0],
        y=place[1],
        seed=line.seed,
        memory_id=memory_id,
        uses=use.uses if use else 0,
        utility=use.fixed - use.broken if use else 0,
        state=line.state,
    )


def _so_far(answers: Lines) -> dict[int, float]:
    """Share of right answers by position, from the first that is judged to the last position."""
    known = {line.position: bool(line.correct) for line in judged(answers)}
    shares: dict[int, float] = {}
    right = count = 0
    for position in range(max((line.position for line in answers), default=-1) + 1):
        if position in known:
            right, count = right + known[position], count + 1
        if count:
            shares[position] = right / count
    return shares


def _band(seeds: Sequence[Mapping[int, float]]) -> Band:
    positions = sorted(set().union(*seeds))
    columns = [[seed[position] for seed in seeds if position in seed] for position in positions]
    return Band(
        x=tuple(position + 1 for position in positions),
        middle=tuple(sum(column) / len(column) for column in columns),
        low=tuple(map(min, columns)),
        high=tuple(map(max, columns)),
        members=len(seeds),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
