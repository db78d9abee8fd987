"""How fast memories are trained and answers given, beside TRL and transformers and the limits of this machine.

Every arm is a process of its own; they take turns, so that whatever else this machine does meets all of them. All
arms do the same work: the same question, group, lengths, KL term and arithmetic.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

from elm_agent.bench.speed_answers import CALLERS, PLAIN, EngineAnswers, PlainAnswers, callers_name
from elm_agent.bench.speed_arms import NATIVE, TRL, TUNED, Arm, Training, arm_of
from elm_agent.bench.speed_bounds import Machine, Turn, step_bound
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
            measured = child.ask("lengths")[-plan.repeats * plan.steps :]
            assert findings.machine is not None
            series.bounds = [step_bound(step, findings.machine, kl=plan.beta > 0) for step in measured]


def _started(plan: Plan, series: Series, opened: ExitStack, observe: Observer) -> Child | None:
    """The arm's process after its first step, which does not count; of the tuned arm's the one that was quickest."""
    arms = candidates(series.arm, plan.rollouts)
    trials = TRIALS if len(arms) > 1 else 0
    going: list[tuple[Arm, Child]] = []
    failure: ElmError | None = None
    for arm in arms:
        try:
            child = Child(
                Training,
                model=plan.model,
                arm=arm,
                question=plan.question,
                recipe=plan.recipe(series.regime),
                turns=1 + trials + plan.repeats,
                steps=plan.steps,
                ignore_end=series.regime.ignore_end,
            )
            opened.callback(child.close)
            child.ask("turn")
            going.append((arm, child))
        except ElmError as error:
            failure = error
    for arm, child in going * trials:
        size = arm.micro_batch or plan.rollouts
        try:
            seconds = child.ask("turn").seconds
            series.tried[size] = min(seconds, series.tried.get(size, seconds))
        except ElmError as error:
            failure = error
            going = [pair for pair in going if pair[1] is not child]
    if not going:
        assert failure is not None
        _failed(series, failure, observe)
        return None
    series.arm, best = min(going, key=lambda pair: series.tried.get(pair[0].micro_batch or 0, 0.0))
    for _, child in going:
        if child is not best:
            child.close()
    return best


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
    common = {"model": plan.model, "tokens": plan.answer_tokens}
    with (
        closing(Child(EngineAnswers, **common, virtual_tokens=plan.virtual_tokens)) as engine,
        closing(Child(PlainAnswers, **common)) as plain,
    ):
        engine.ask("callers", max(CALLERS))  # the first of each does not count
        engine.ask("seconds", True)
        plain.ask("one_by_one")
        for _ in range(plan.repeats):
            told = {PLAIN: plain.ask("one_by_one")}
            told |= {callers_name(count): engine.ask("callers", count) for count in CALLERS}
            for name, rate in told.items():
                findings.answers.setdefault(name, []).append(rate)
            findings.both.append((engine.ask("seconds", False), engine.ask("seconds", True)))
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
