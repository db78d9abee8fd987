"""What a report is made of in any form: sections of words, tables and pictures, and how numbers are written."""

from __future__ import annotations

from dataclasses import dataclass

from elm_agent.bench.evidence.lines import Share
from elm_agent.bench.evidence.paired import Interval

NONE = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    roomy: bool = False  # cells hold several numbers, and rows are read across


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """``svg`` stands inside a page; ``alt`` says in words what is to be seen."""

    svg: str
    alt: str
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    title: str
    words: tuple[str, ...] = ()
    table: Table | None = None
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()  # what could not be computed, and why


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A chapter: one task, or what concerns the whole run."""

    title: str
    sections: tuple[Section, ...]


# --- numbers as text --------------------------------------------------------------------------------------------


def percent(share: Share | float | None) -> str:
    value = share.value if isinstance(share, Share) else share
    return NONE if value is None else f"{100 * value:.1f} %"


def counted(share: Share) -> str:
    return NONE if share.value is None else f"{100 * share.value:.1f} % ({share.part}/{share.whole})"


def points(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:+.1f}"


def interval(found: Interval) -> str:
    if found.low is None or found.high is None:
        return points(found.estimate)
    return f"{points(found.estimate)} [{points(found.low)}, {points(found.high)}]"


def p_value(p: float | None) -> str:
    return NONE if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def number(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{value:,.{digits}f}".replace(",", " ")


def seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def plain(value: object) -> str:
    """One line of printable text, whatever was stored."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(str(value).split()))
