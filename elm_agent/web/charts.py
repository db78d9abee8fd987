"""Numbers to coordinates for inline SVG: lines, a flow between two columns, points. Pure; draws nothing itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 12.0, 28.0


@dataclass(frozen=True, slots=True)
class Line:
    """``parts``: the line in pieces, each the ``points`` of a polyline; a value that is missing parts them."""

    name: str
    number: int
    parts: tuple[str, ...]
    dots: tuple[tuple[float, float, str], ...]  # x, y, what it says


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines over shares from 0 to 1. ``ticks``: (y, label); ``ends``: labels of the first and the last place."""

    lines: tuple[Line, ...]
    ticks: tuple[tuple[float, str], ...]
    ends: tuple[str, str]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    bottom: float = HEIGHT - BOTTOM


def lines(series: Mapping[str, Sequence[float | None]], *, labels: Sequence[str]) -> Lines:
    """``series``: shares by name, all as long as ``labels``, which is not empty. None or NaN is a gap."""
    ticks = tuple((_y(share), f"{share:.0%}") for share in (0.0, 0.25, 0.5, 0.75, 1.0))
    drawn = tuple(_line(name, number, values, labels) for number, (name, values) in enumerate(series.items()))
    return Lines(drawn, ticks, (labels[0], labels[-1]))


def _line(name: str, number: int, values: Sequence[float | None], labels: Sequence[str]) -> Line:
    parts: list[list[str]] = [[]]
    dots = []
    for place, value in enumerate(values):
        if value is None or not math.isfinite(value):
            parts.append([])
            continue
        x, y = _x(place, len(values)), _y(min(max(value, 0.0), 1.0))
        parts[-1].append(f"{x},{y}")
        dots.append((x, y, f"{labels[place]}: {name} {value:.1%}"))
    return Line(name, number, tuple(" ".join(part) for part in parts if part), tuple(dots))


def _x(place: int, count: int) -> float:
    span = WIDTH - LEFT - RIGHT
    return round(LEFT + span * (place / (count - 1) if count > 1 else 0.5), 1)


def _y(share: float) -> float:
    return round(TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - share), 1)


@dataclass(frozen=True, slots=True)
class Bar:
    """A node of a flow: a bar with a name and how much goes through it."""

    name: str
    count: int
    x: float
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Band:
    """A stream between two bars as the ``d`` of a path. ``kind``: the name on the right, which colours it."""

    path: str
    kind: str
    title: str


@dataclass(frozen=True, slots=True)
class FlowChart:
    left: tuple[Bar, ...]
    right: tuple[Bar, ...]
    bands: tuple[Band, ...]
    width: float = WIDTH
    height: float = 320.0


BAR, GAP, MARGIN, SIDE = 14.0, 10.0, 8.0, 150.0


def flow(counts: Mapping[tuple[str, str], int], *, left: Sequence[str], right: Sequence[str]) -> FlowChart:
    """``counts``: how many go from a name on the left to one on the right. Names without any are left out."""
    total = sum(counts.values())
    most = max(1, max(len(left), len(right)) - 1)
    scale = (320.0 - 2 * MARGIN - most * GAP) / max(1, total)
    lefts = _column(left, {name: sum(n for (a, _), n in counts.items() if a == name) for name in left}, SIDE, scale)
    rights = _column(
        right,
        {name: sum(n for (_, b), n in counts.items() if b == name) for name in right},
        WIDTH - SIDE - BAR,
        scale,
    )
    starts, ends = {bar.name: bar.y for bar in lefts}, {bar.name: bar.y for bar in rights}
    bands = []
    for a in left:
        for b in right:
            if n := counts.get((a, b), 0):
                path = _band(starts[a], ends[b], n * scale)
                bands.append(Band(path, b, f"{a} to {b}: {n:,} ({n / total:.1%})"))
                starts[a] += n * scale
                ends[b] += n * scale
    return FlowChart(tuple(lefts), tuple(rights), tuple(bands))


def _column(names: Sequence[str], counts: Mapping[str, int], x: float, scale: float) -> list[Bar]:
    bars, y = [], MARGIN
    for name in names:
        if counts[name]:
            height = counts[name] * scale
            bars.append(Bar(name, counts[name], x, round(y, 1), round(max(height, 0.5), 1)))
            y += height + GAP
    return bars


def _band(top_left: float, top_right: float, height: float) -> str:
    a, b = SIDE + BAR, WIDTH - SIDE - BAR
    middle = (a + b) / 2
    y, z = round(top_left, 1), round(top_right, 1)
    h = round(max(height, 0.5), 1)
    return (
        f"M{a},{y} C{middle},{y} {middle},{z} {b},{z} L{b},{round(z + h, 1)} "
        f"C{middle},{round(z + h, 1)} {middle},{round(y + h, 1)} {a},{round(y + h, 1)} Z"
    )


def points(
    places: Sequence[tuple[float, float]], *, width: float = WIDTH, height: float = 480.0, margin: float = 16.0
) -> list[tuple[float, float]]:
    """Points fitted into a box, one scale for both axes, so that distances stay comparable."""
    if not places:
        return []
    xs, ys = [x for x, _ in places], [y for _, y in places]
    across, down = max(xs) - min(xs), max(ys) - min(ys)
    scale = min(
        (width - 2 * margin) / across if across > 0 else math.inf,
        (height - 2 * margin) / down if down > 0 else math.inf,
    )
    scale = scale if math.isfinite(scale) else 0.0
    middle = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    return [
        (round(width / 2 + (x - middle[0]) * scale, 1), round(height / 2 - (y - middle[1]) * scale, 1))
        for x, y in places
    ]
