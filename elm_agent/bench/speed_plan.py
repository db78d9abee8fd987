"""What ``bench speed`` is asked to measure and what it has found so far: plain data, checks and an estimate."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from elm_agent.bench.speed_answers import ASKS, CALLERS, Both, lengths_of
from elm_agent.bench.speed_arms import NATIVE, TRL, TUNED, Arm, arm_of, micro_batches
from elm_agent.bench.speed_bounds import Figures, Machine, Turn, figures, step_bound
from elm_agent.bench.speed_machine import ModelChoice
from elm_agent.errors import InputError, SettingsError

ANSWERS = "answers"
TRIALS = 2  # turns with every micro-batch that the tuned arm may choose
START_SECONDS = 12.0  # for a process to import and load; only for the estimate
TIMES_BOUND = {TRL: 6.5, TUNED: 4.5, NATIVE: 2.3}  # of earlier runs on two cores; only for the estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured. ``arms``: None for all that suit the device."""

    model: ModelChoice
    arms: tuple[str, ...] | None = None
    tokens: tuple[int, ...] = (24, 64, 256)  # lengths of rollouts that ignore the end token
    natural: int = 64  # limit of rollouts that end by themselves; 0: none are measured
    repeats: int = 5
    steps: int = 1  # of every memory in one turn
    answer_tokens: int = 24
    question: str = "What is 7 times 8?"
    rollouts: int = 8
    virtual_tokens: int = 20
    beta: float = 0.04

    def recipe(self, regime: Regime) -> dict[str, Any]:
        return {
            "rollouts": self.rollouts,
            "virtual_tokens": self.virtual_tokens,
            "beta": self.beta,
            "max_new_tokens": regime.tokens,
        }

    def regimes(self) -> list[Regime]:
        fixed = [Regime(tokens=tokens, ignore_end=True) for tokens in self.tokens]
        return fixed + ([Regime(tokens=self.natural, ignore_end=False)] if self.natural else [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """How long rollouts are: exactly so many tokens, or until they end and at most so many."""

    tokens: int
    ignore_end: bool

    @property
    def name(self) -> str:
        return f"{self.tokens}" if self.ignore_end else f"natural, at most {self.tokens}"


@dataclass(slots=True, kw_only=True)
class Series:
    """One arm at one regime; grows with every turn."""

    arm: Arm
    regime: Regime
    turns: list[Turn] = field(default_factory=list)
    tried: dict[int, float] = field(default_factory=dict)  # tuned arm: seconds of a trial with each micro-batch
    lengths: list[list[int]] = field(default_factory=list)  # tokens of every rollout, by step that was measured
    peak_bytes: int | None = None
    peak_since: str = ""
    failure: str | None = None


@dataclass(slots=True, kw_only=True)
class Findings:
    """What has been measured so far."""

    plan: Plan
    about: dict[str, Any] = field(default_factory=dict)
    machine: Machine | None = None
    series: list[Series] = field(default_factory=list)
    answers: dict[str, list[float]] = field(default_factory=dict)  # tokens per second, by who asked
    both: list[Both] = field(default_factory=list)
    answers_failure: str | None = None

    def both_over_one(self) -> Both | None:
        """Medians of times as long as one answer, each pair measured one after the other."""
        if not self.both:
            return None
        met, new = (
            statistics.median(getattr(turn, kind) / turn.one for turn in self.both) for kind in ("met", "new")
        )
        return Both(one=1.0, met=met, new=new)

    def figures(self, series: Series) -> Figures | None:
        """An arm in numbers; its bound by the limits as they are known by now, the same for all arms."""
        if not series.turns:
            return None
        machine, kl = self.machine, self.plan.beta > 0
        bounds = [step_bound(step, machine, kl=kl) for step in series.lengths] if machine else []
        return figures(series.turns, memories=series.arm.memories, steps=self.plan.steps, bounds=bounds)

    def find(self, arm: str, regime: Regime) -> Series | None:
        """What the arm of that name did at that length."""
        return next((one for one in self.series if one.arm.name == arm and one.regime == regime), None)

    def times(self, series: Series, other: str) -> float | None:
        """How many times quicker a memory's step is than in that arm; by medians.

        Arms draw different texts: where these end by themselves, it is told by token drawn.
        """
        slow = self.find(other, series.regime)
        ours, theirs = self.figures(series), None if slow is None else self.figures(slow)
        if ours is None or theirs is None:
            return None
        if series.regime.ignore_end:
            return theirs.seconds_per_memory_step / ours.seconds_per_memory_step
        return theirs.seconds_per_token / ours.seconds_per_token


def check(plan: Plan) -> tuple[list[Arm], bool] | None:
    """The arms that were named, and whether answers are among them. Raises for what cannot be measured here."""
    bad = [count for count in (*plan.tokens, plan.repeats, plan.steps, plan.answer_tokens) if count < 1]
    if bad or plan.natural < 0:
        raise InputError(f"a count is {min([*bad, plan.natural])}: expected lengths and repeats of at least 1")
    if plan.arms is None:
        return None
    if ANSWERS not in plan.arms and not (plan.arms and plan.regimes()):
        raise InputError("nothing is to be measured: name arms with --arms, and lengths with --tokens or --natural")
    arms = [arm_of(name) for name in dict.fromkeys(plan.arms) if name != ANSWERS]
    if any(arm.trainer != NATIVE for arm in arms) and (missing := missing_packages()):
        raise SettingsError(f"arms of TRL need {', '.join(missing)}: run `pip install 'elm-agent[trl]'`")
    return arms, ANSWERS in plan.arms


def estimate(findings: Findings, arms: Sequence[Arm], answers: bool) -> float:
    """Roughly how many seconds it will take, from the bounds and how near to them earlier runs came."""
    plan, machine = findings.plan, findings.machine
    assert machine is not None
    seconds = START_SECONDS
    for regime in plan.regimes():
        for arm in arms:
            tried = len(candidates(arm, plan.rollouts))
            tried = tried if tried > 1 else 0
            rows = [regime.tokens] * plan.rollouts * arm.memories
            step = TIMES_BOUND[arm.trainer] * step_bound(rows, machine, kl=plan.beta > 0)
            turns = 1 + plan.repeats + (1 + TRIALS) * tried
            seconds += (1 + tried) * START_SECONDS + turns * plan.steps * step
    if answers:
        token = TIMES_BOUND[NATIVE] * machine.weight_bytes / machine.bytes_per_s
        tokens = ASKS * statistics.mean(lengths_of(plan.answer_tokens))
        seconds += 2 * START_SECONDS + (plan.repeats + 1) * tokens * token * (len(CALLERS) + 1)
    return seconds


def check_room(plan: Plan, about: dict[str, Any]) -> None:
    longest = max((regime.tokens for regime in plan.regimes()), default=0)
    positions = plan.virtual_tokens + about["prompt_tokens"] + longest
    if positions > about["context_length"]:
        raise InputError(
            f"rollouts of {longest} tokens take {positions} positions, more than the model's context of "
            f"{about['context_length']}: give smaller --tokens"
        )


def candidates(arm: Arm, rollouts: int) -> list[Arm]:
    if arm.trainer != TUNED:
        return [arm]
    return [replace(arm, micro_batch=size) for size in micro_batches(rollouts)]


def turns_of(plan: Plan, arms: Sequence[Arm], answers: bool) -> int:
    return plan.repeats * (len(plan.regimes()) * len(arms) + answers)


def missing_packages() -> list[str]:
    return [name for name in ("trl", "peft", "datasets") if importlib.util.find_spec(name) is None]
