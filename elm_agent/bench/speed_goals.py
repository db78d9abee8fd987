"""What ``bench speed`` is to reach, and whether it did. Knows findings; knows nothing of pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from elm_agent.bench.speed_arms import NATIVE, TRL, TUNED
from elm_agent.bench.speed_plan import Findings, Regime

# The goals: a step of one memory at these lengths beside TRL's; a memory in a cohort beside one by itself, wherever
# lengths are exact; and no native arm ever takes more memory than TRL as it is by default.
LENGTHS = (24, 64)
TIMES = {TRL: 5.0, TUNED: 3.0}
COHORT, TIMES_ALONE = 4, 1.3
_NAMES = {TRL: "TRL", TUNED: "TRL tuned"}


@dataclass(frozen=True, slots=True)
class Goal:
    """``found``: what was measured instead; empty, and ``met`` None, when it was not."""

    what: str
    found: str = ""
    met: bool | None = None


def goals(findings: Findings) -> list[Goal]:
    exact = [regime for regime in findings.plan.regimes() if regime.ignore_end]
    lengths = list(dict.fromkeys([*LENGTHS, *(regime.tokens for regime in exact)]))
    return [*_beside_trl(findings), *(_cohort(findings, tokens) for tokens in lengths), *_peaks(findings)]


def told(findings: Findings) -> str:
    """All goals in one line."""
    found = goals(findings)
    kinds = {"Met": True, "not met": False, "not measured": None}
    parts = {kind: [_words(goal) for goal in found if goal.met is met] for kind, met in kinds.items()}
    return "Goals. " + " ".join(f"{kind.capitalize()}: {', '.join(of) or 'none'}." for kind, of in parts.items())


def _words(goal: Goal) -> str:
    return f"{goal.what} ({goal.found})" if goal.found else goal.what


def _beside_trl(findings: Findings) -> Iterator[Goal]:
    for tokens in LENGTHS:
        for other, wanted in TIMES.items():
            what = f"{wanted:g} times {_NAMES[other]} at {tokens} tokens"
            yield _times(findings, what, tokens, NATIVE, other, wanted)


def _cohort(findings: Findings, tokens: int) -> Goal:
    what = f"{TIMES_ALONE:g} times one memory by {COHORT} at once at {tokens} tokens"
    return _times(findings, what, tokens, f"{NATIVE}-{COHORT}", NATIVE, TIMES_ALONE)


def _times(findings: Findings, what: str, tokens: int, arm: str, other: str, wanted: float) -> Goal:
    series = findings.find(arm, Regime(tokens=tokens, ignore_end=True))
    times = None if series is None else findings.times(series, other)
    return Goal(what) if times is None else Goal(what, f"{times:.2f}", times >= wanted)


def _peaks(findings: Findings) -> Iterator[Goal]:
    for series in findings.series:
        if series.arm.trainer == NATIVE:
            what = f"peak memory of {series.arm.name} at most TRL's at {series.regime.name} tokens"
            theirs = findings.find(TRL, series.regime)
            yield _at_most(what, series.peak_bytes, None if theirs is None else theirs.peak_bytes)


def _at_most(what: str, ours: int | None, theirs: int | None) -> Goal:
    if ours is None or theirs is None:
        return Goal(what)
    return Goal(what, f"{ours / theirs:.2f} of it", ours <= theirs)
