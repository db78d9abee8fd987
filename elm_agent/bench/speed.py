"""How fast memories are trained and answers given, beside TRL and transformers and the limits of this machine.

Every arm is a process of its own; they take turns, so that whatever else this machine does meets all of them. All
arms do the same work: the same question, group, lengths, KL term and arithmetic, at the same steps with the same
seeds. Only where rollouts end by themselves do arms draw more or less than others; there a token is what is compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

from elm_agent.bench.speed_answers import CALLERS, PAIRS, PLAIN, EngineAnswers, PlainAnswers, callers_name
from elm_agent.bench.speed_arms import NATIVE, TRL, TUNED, Arm, Training, arm_of
from elm_agent.bench.speed_bounds import Machine, Turn
from elm_agent.bench.speed_child import Child
from elm_agent.bench.speed_machine import Probe
from elm_agent.bench.speed_plan import (
    ANSWERS,
    TRIALS,
    Findings,
    Plan,
    Regime,
    Series,
    candidates,
    check,
    check_room,
    estimate,
    missing_packages,
    turns_of,
)
from elm_agent.errors import ElmError
from elm_agent.protocols import Observer

COHORTS = {"cpu": (2, 4, 8), "cuda": (2, 4, 8, 16, 32)}


def run_speed(plan: Plan, findings: Findings, observe: Observer) -> None:
    """Measure and put it into ``findings`` at once, so that nothing is lost when this is stopped.

    ``observe`` is told "plan" (turns, seconds: an estimate), then "turn" for each, and "failure" for an arm that
    cannot go on; the others do. Raises ``InputError`` for a plan that cannot be, ``ModelError`` for a bad model.
    """
    named = check(plan)
    findings.about["load_before"] = os.getloadavg()
    with closing(Child(Probe, model=plan.model, question=plan.question)) as probe:
        findings.about |= probe.ask("about")
        check_room(plan, findings.about)
        arms, answers = named or (_all_arms(findings.about["kind"], observe), True)
        for number, regime in enumerate(plan.regimes()):
            if not arms:
                break
            _limits(findings, probe, rows=plan.rollouts * regime.tokens)
            if number == 0:
                observe(
                    "plan", {"turns": turns_of(plan, arms, answers), "seconds": estimate(findings, arms, answers)}
                )
            _measure(plan, regime, arms, findings, observe)
            _limits(findings, probe, rows=plan.rollouts * regime.tokens)
        if answers:
            if not arms:
                _limits(findings, probe, rows=plan.rollouts * plan.answer_tokens)
                observe("plan", {"turns": plan.repeats, "seconds": estimate(findings, arms, answers)})
            _answer(plan, findings, observe)
    findings.about["load_after"] = os.getloadavg()


# --- training --------------------------------------------------------------------------------------------------


def _measure(plan: Plan, regime: Regime, arms: Sequence[Arm], findings: Findings, observe: Observer) -> None:
    """All arms at one length: they start one after the other, then take turns."""
    with ExitStack() as opened:
        going: list[tuple[Series, Child]] = []
        for arm in arms:
            series = Series(arm=arm, regime=regime)
            findings.series.append(series)
            if (child := _started(plan, series, opened, observe)) is not None:
                going.append((series, child))
        for repeat in range(plan.repeats):
            for series, child in list(going):
                try:
                    turn: Turn = child.ask("turn")
                except ElmError as error:
                    going.remove((series, child))
                    _failed(series, error, observe)
                    continue
                series.turns.append(turn)
                series.peak_bytes, series.peak_since = child.ask("peak")
                observe("turn", {"arm": series.arm.name, "tokens": regime.name, "repeat": repeat, **_plain(turn)})
        for series, child in going:
            series.lengths = child.ask("lengths")[-plan.repeats * plan.steps :]


def _started(plan: Plan, series: Series, opened: ExitStack, observe: Observer) -> Child | None:
    """The arm's process after its first turn, which does not count."""
    try:
        first, *more = candidates(series.arm, plan.rollouts)
        series.arm = _quickest(plan, series, [first, *more]) if more else first
        child = opened.enter_context(closing(_child(plan, series.arm, series.regime, turns=1 + plan.repeats)))
        child.ask("turn")
        return child
    except ElmError as error:
        _failed(series, error, observe)
        return None


def _quickest(plan: Plan, series: Series, arms: Sequence[Arm]) -> Arm:
    """The one that was quickest in processes that end here: it is measured from its first step, like other arms."""
    going: dict[Arm, Child] = {}
    failure: ElmError | None = None
    with ExitStack() as opened:
        for trial in range(1 + TRIALS):  # the first of each does not count
            for arm in arms if trial == 0 else list(going):
                try:
                    if trial == 0:
                        going[arm] = opened.enter_context(closing(_child(plan, arm, series.regime, turns=1 + TRIALS)))
                    seconds, size = going[arm].ask("turn").seconds, arm.micro_batch or plan.rollouts
                    if trial:
                        series.tried[size] = min(seconds, series.tried.get(size, seconds))
                except ElmError as error:
                    failure = error
                    going.pop(arm, None)
    if not going:
        assert failure is not None
        raise failure
    return min(going, key=lambda arm: series.tried[arm.micro_batch or plan.rollouts])


def _child(plan: Plan, arm: Arm, regime: Regime, *, turns: int) -> Child:
    return Child(
        Training,
        model=plan.model,
        arm=arm,
        question=plan.question,
        recipe=plan.recipe(regime),
        turns=turns,
        steps=plan.steps,
        ignore_end=regime.ignore_end,
    )


def _failed(series: Series, error: ElmError, observe: Observer) -> None:
    series.failure = str(error)
    observe("failure", {"arm": series.arm.name, "tokens": series.regime.name, "reason": series.failure})


# --- answers ---------------------------------------------------------------------------------------------------


def _answer(plan: Plan, findings: Findings, observe: Observer) -> None:
    try:
        for repeat, told in enumerate(_answerturns_of(plan, findings)):
            observe("turn", {"arm": ANSWERS, "tokens": f"{plan.answer_tokens}", "repeat": repeat, **told})
    except ElmError as error:
        findings.answers_failure = str(error)
        observe("failure", {"arm": ANSWERS, "tokens": f"{plan.answer_tokens}", "reason": str(error)})


def _answerturns_of(plan: Plan, findings: Findings) -> Iterator[dict[str, float]]:
    common = {"model": plan.model, "tokens": plan.answer_tokens, "virtual_tokens": plan.virtual_tokens}
    with (
        closing(Child(EngineAnswers, **common)) as engine,
        closing(Child(PlainAnswers, **common)) as plain,
    ):
        engine.ask("callers", max(CALLERS))  # the first of each does not count
        engine.ask("both")
        plain.ask("one_by_one")
        for _ in range(plan.repeats):
            told = {PLAIN: plain.ask("one_by_one")}
            told |= {callers_name(count): engine.ask("callers", count) for count in CALLERS}
            for name, rate in told.items():
                findings.answers.setdefault(name, []).append(rate)
            findings.both += [engine.ask("both") for _ in range(PAIRS)]
            yield told


# --- what this machine can -------------------------------------------------------------------------------------


def _limits(findings: Findings, probe: Child, *, rows: int) -> None:
    """Measure the limits again; what a busy moment hid may show now."""
    new: Machine = probe.ask("measure", rows)
    if (old := findings.machine) is not None:
        new = replace(
            new,
            flops_per_s=max(old.flops_per_s, new.flops_per_s),
            bytes_per_s=max(old.bytes_per_s, new.bytes_per_s),
        )
    findings.machine = new


def _all_arms(kind: str, observe: Observer) -> list[Arm]:
    names = [TRL, TUNED]
    if missing := missing_packages():
        names = []
        observe("failure", {"arm": TRL, "tokens": "all", "reason": f"left out, {', '.join(missing)} not installed"})
    return [arm_of(name) for name in [*names, NATIVE, *(f"{NATIVE}-{count}" for count in COHORTS[kind])]]


def _plain(turn: Turn) -> dict[str, float]:
    return {"seconds": turn.seconds, "seconds_update": turn.seconds_update, "tokens_drawn": turn.tokens}
