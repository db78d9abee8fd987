"""The criteria of admission: what the making of a memory and a probe of it say, each as a pure function.

A criterion has a bound (None: it is not asked) and gives a ``Finding`` that names what was measured, so that the
record of a memory says why it may serve or may not. ``gate`` applies them; nothing here generates, reads or writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from elm_agent.errors import TrainingError
from elm_agent.protocols import Trained
from elm_agent.records import MemoryState, Review, StepRecord

_WORST = (MemoryState.QUARANTINED, MemoryState.CANDIDATE)  # what a memory becomes that fails, the graver first


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The bounds, None: not asked. See ``AdmissionSettings`` for units and reasons."""

    min_vote_rise: float | None = None
    min_entropy: float | None = None
    min_length_ratio: float | None = None
    max_length_ratio: float | None = None
    max_norm_ratio: float | None = None
    probe_may_lose: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One criterion, asked of one memory. ``measured`` None: nobody had measured it, which counts as failed.

    ``otherwise``: what the memory becomes if it fails.
    """

    criterion: str
    measured: float | None
    bound: float
    passed: bool
    otherwise: MemoryState
    reason: str | None = None  # one clause, of a criterion that failed


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """How many answers meant their reference, of the memory's own question and of ``past`` others.

    ``kept``, ``fixed``, ``broken``: of the past ones, right with and without, only with, only without the memory.
    The reference of a question is the majority answer that was learnt for it, never a label.
    """

    own_before: bool
    own_after: bool
    past: int
    kept: int
    fixed: int
    broken: int
    tokens: int
    seconds: float

    @property
    def before(self) -> int:
        """Right without the memory, of all 1 + past."""
        return int(self.own_before) + self.kept + self.broken

    @property
    def after(self) -> int:
        """Right with it."""
        return int(self.own_after) + self.kept + self.fixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What becomes of a memory, and why. ``findings`` and ``probe``: the evidence, in the order it was looked at.

    ``review``: WAITING for what nothing speaks against and a person is to look at.
    """

    state: MemoryState
    reason: str | None
    findings: tuple[Finding, ...] = ()
    probe: ProbeResult | None = None
    review: Review | None = None

    def detail(self) -> dict[str, Any]:
        """For the ledger, where it stays for ever: numbers and names alone. Empty when nothing was asked."""
        told: dict[str, Any] = {}
        if self.findings:
            told["criteria"] = {
                one.criterion: {"measured": one.measured, "bound": one.bound, "passed": one.passed}
                for one in self.findings
            }
        if self.probe is not None:
            told["probe"] = asdict(self.probe) | {"before": self.probe.before, "after": self.probe.after}
        if self.review is not None:
            told["review"] = self.review.value
        return told


def ruling(findings: Sequence[Finding], probe: ProbeResult | None = None) -> Ruling:
    """``active`` if every criterion passed; else the gravest state that a failed one asks for, with all reasons."""
    failed = [one for one in findings if not one.passed]
    if not failed:
        return Ruling(state=MemoryState.ACTIVE, reason=None, findings=tuple(findings), probe=probe)
    state = next(state for state in _WORST if any(one.otherwise is state for one in failed))
    reason = "; ".join(one.reason or one.criterion for one in failed)
    return Ruling(state=state, reason=reason, findings=tuple(findings), probe=probe)


# --- criteria of the training ---------------------------------------------------------------------------------


def answered(curve: Sequence[StepRecord]) -> Finding:
    """Some step had an answer to vote on: without one nothing was learnt."""
    if not curve:
        raise TrainingError("the trainer returned no step: expected a curve of at least one")
    count = sum(step.majority_answer is not None for step in curve)
    return _candidate("answers", count, 1, count >= 1, f"none of {len(curve)} steps produced an answer to vote on")


def vote_share(curve: Sequence[StepRecord], minimum: float) -> Finding:
    """The share of the last vote: below ``minimum`` the memory disagrees with itself."""
    final = curve[-1].vote_share
    reason = f"final vote share {final:.3f} is below min_vote_share {minimum:.3f}"
    return _candidate("vote_share", final, minimum, final >= minimum, reason)


def vote_rise(curve: Sequence[StepRecord], minimum: float) -> Finding:
    """Mean vote share of the last half of the steps less that of the first half; see ``rise``."""
    rose = rise([step.vote_share for step in curve])
    reason = f"the vote share rose by {rose:+.3f} over {len(curve)} steps, less than min_vote_rise {minimum:+.3f}"
    return _candidate("vote_rise", rose, minimum, rose >= minimum, reason)


def entropy(entropies: Sequence[float], minimum: float) -> Finding:
    """Nats per token of the last step's completions: below ``minimum`` they are all but one and the same text."""
    if not entropies:
        return _unmeasured("entropy", minimum)
    last = entropies[-1]
    reason = f"the completions collapsed: entropy {last:.3g} nats a token, min_entropy is {minimum:.3g}"
    return _collapse("entropy", last, minimum, last >= minimum, reason)


def length_ratios(curve: Sequence[StepRecord], minimum: float | None, maximum: float | None) -> list[Finding]:
    """Completion tokens of the last step to those of the first, within the bounds that are given."""
    ratio = curve[-1].tokens / max(1, curve[0].tokens)
    said = f"completions are {ratio:.3g} times as long as at the first step"
    found = []
    if minimum is not None:
        reason = f"{said}, below min_length_ratio {minimum:.3g}"
        found.append(_collapse("length_ratio", ratio, minimum, ratio >= minimum, reason))
    if maximum is not None:
        reason = f"{said}, above max_length_ratio {maximum:.3g}"
        found.append(_collapse("length_ratio_most", ratio, maximum, ratio <= maximum, reason))
    return found


def norm_ratio(initial: float | None, final: float, maximum: float) -> Finding:
    """The memory's norm to that which it began with, or the inverse where it shrank: at most ``maximum``."""
    if not initial or not final:
        return _unmeasured("norm_ratio", maximum)
    ratio = max(final / initial, initial / final)
    reason = f"its norm went from {initial:.3g} to {final:.3g}, a factor above max_norm_ratio {maximum:.3g}"
    return _collapse("norm_ratio", ratio, maximum, ratio <= maximum, reason)


def of_training(trained: Trained, rules: Rules, *, min_vote_share: float) -> list[Finding]:
    """Every criterion of the training that ``rules`` ask for."""
    curve = trained.curve
    found = of_curve(curve, min_vote_share=min_vote_share)
    if rules.min_vote_rise is not None:
        found.append(vote_rise(curve, rules.min_vote_rise))
    if rules.min_entropy is not None:
        found.append(entropy(trained.entropies, rules.min_entropy))
    found += length_ratios(curve, rules.min_length_ratio, rules.max_length_ratio)
    if rules.max_norm_ratio is not None:
        found.append(norm_ratio(trained.initial_norm, trained.norm, rules.max_norm_ratio))
    return found


def of_curve(curve: Sequence[StepRecord], *, min_vote_share: float) -> list[Finding]:
    """The two criteria that are always asked, in the order in which they count."""
    first = answered(curve)
    return [first, vote_share(curve, min_vote_share)] if first.passed else [first]


def rise(shares: Sequence[float]) -> float:
    """Mean of the last half less mean of the first half; an odd one in the middle counts in neither, one alone: 0."""
    half = len(shares) // 2
    return (sum(shares[len(shares) - half :]) - sum(shares[:half])) / half if half else 0.0


# --- criteria of the probe ------------------------------------------------------------------------------------


def of_probe(result: ProbeResult, *, may_lose: int) -> list[Finding]:
    """It keeps its own question if the bare model had it, and loses at most ``may_lose`` past ones more than it wins.

    What loses its own question is a candidate; what harms others is quarantined.
    """
    own = int(result.own_after) - int(result.own_before)
    lost = result.broken - result.fixed
    harm = (
        f"with it {result.broken} of {result.past} past questions went wrong and {result.fixed} came right, "
        f"probe_may_lose is {may_lose}"
    )
    return [
        _candidate(
            "probe_own", own, 0, own >= 0, "with it the answer to its own question is no longer its majority's"
        ),
        _collapse("probe_past", lost, may_lose, lost <= may_lose, harm),
    ]


def count_answers(pairs: Iterable[tuple[bool, bool]]) -> tuple[int, int, int]:
    """(kept, fixed, broken) of pairs (right without the memory, right with it)."""
    kept = fixed = broken = 0
    for before, after in pairs:
        kept += before and after
        fixed += after and not before
        broken += before and not after
    return kept, fixed, broken


# --- parts ----------------------------------------------------------------------------------------------------


def _candidate(criterion: str, measured: float, bound: float, passed: bool, reason: str) -> Finding:
    return _finding(criterion, measured, bound, passed, MemoryState.CANDIDATE, reason)


def _collapse(criterion: str, measured: float, bound: float, passed: bool, reason: str) -> Finding:
    return _finding(criterion, measured, bound, passed, MemoryState.QUARANTINED, reason)


def _unmeasured(criterion: str, bound: float) -> Finding:
    reason = f"its training did not measure {criterion}, which a rule asks for"
    return _finding(criterion, None, bound, False, MemoryState.CANDIDATE, reason)


def _finding(
    criterion: str, measured: float | None, bound: float, passed: bool, otherwise: MemoryState, reason: str
) -> Finding:
    return Finding(
        criterion=criterion,
        measured=measured,
        bound=bound,
        passed=passed,
        otherwise=otherwise,
        reason=None if passed else reason,
    )
