"""The criteria of admission against numbers worked by hand, and the one place that applies them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elm_agent.errors import SettingsError, TrainingError
from elm_agent.memory.admission import (
    Finding,
    ProbeResult,
    Rules,
    count_answers,
    entropy,
    length_ratios,
    norm_ratio,
    of_probe,
    of_training,
    rise,
    ruling,
    vote_rise,
)
from elm_agent.protocols import Trained
from elm_agent.records import MemoryKeys, MemoryState, Recipe, StepRecord
from elm_agent.runtime import check_settings
from elm_agent.settings import Settings
from elm_agent.softprompt import SoftPrompt
from elm_agent.testing.doubles import FakeTrainer, unit_vector
from elm_agent.training import numerics

STEP = FakeTrainer()._step(0, Recipe())
ACTIVE, CANDIDATE, QUARANTINED = MemoryState.ACTIVE, MemoryState.CANDIDATE, MemoryState.QUARANTINED
PROBED = ProbeResult(own_before=True, own_after=True, past=4, kept=2, fixed=1, broken=1, tokens=60, seconds=0.5)


def curve(shares: Sequence[float], tokens: Sequence[int] = ()) -> tuple[StepRecord, ...]:
    lengths = tokens or [8] * len(shares)
    return tuple(
        replace(STEP, step=n, vote_share=share, majority_answer="1" if share else None, tokens=length)
        for n, (share, length) in enumerate(zip(shares, lengths, strict=True))
    )


def trained(steps: tuple[StepRecord, ...], **more: Any) -> Trained:
    """Its prompt has the norm 5."""
    prompt = SoftPrompt(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    keys = MemoryKeys(input=unit_vector("key", 2), kv=None)
    return Trained(prompt=prompt, keys=keys, curve=steps, rollouts=(), seed=0, seconds=0.0, **more)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.2, 0.4, 0.6, 0.8), 0.4),
        ((0.5, 0.9, 0.6), 0.1),  # the middle one counts in neither half
        ((0.75, 0.25), -0.5),
        ((0.3,), 0.0),
        ((), 0.0),
    ],
)
def test_the_rise_of_a_vote(shares: tuple[float, ...], expected: float) -> None:
    assert rise(shares) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), max_size=20))
def test_a_rise_turns_with_its_curve(shares: list[float]) -> None:
    assert rise(shares[::-1]) == pytest.approx(-rise(shares))
    assert -1 <= rise(shares) <= 1


def test_a_vote_that_does_not_rise_is_kept_as_a_candidate() -> None:
    assert vote_rise(curve([0.5, 0.5]), 0.0).passed
    found = vote_rise(curve([0.75, 0.5]), 0.0)
    assert (found.passed, found.measured, found.otherwise) == (False, -0.25, CANDIDATE)
    assert found.reason == "the vote share rose by -0.250 over 2 steps, less than min_vote_rise +0.000"


def test_completions_that_are_all_one_text_are_a_collapse() -> None:
    assert entropy((2.0, 0.5), 0.5).passed, "the last step counts, and its bound is enough"
    found = entropy((2.0, 0.01), 0.05)
    assert (found.passed, found.otherwise) == (False, QUARANTINED)
    assert found.reason == "the completions collapsed: entropy 0.01 nats a token, min_entropy is 0.05"


@pytest.mark.parametrize(
    ("tokens", "least", "most", "passed"),
    [
        ((100, 10), None, None, []),
        ((100, 10), 0.1, None, [True]),
        ((100, 9), 0.1, None, [False]),
        ((100, 200), 0.1, 2.0, [True, True]),
        ((100, 201), 0.1, 2.0, [True, False]),
        ((0, 3), None, 2.0, [False]),  # nothing at first: as if it had been one token
    ],
)
def test_completions_keep_their_length(
    tokens: tuple[int, int], least: float | None, most: float | None, passed: list[bool]
) -> None:
    found = length_ratios(curve([0.5, 0.5], tokens), least, most)
    assert [one.passed for one in found] == passed
    assert all(one.otherwise is QUARANTINED for one in found)


@pytest.mark.parametrize(
    ("initial", "final", "passed"), [(5.0, 5.0, True), (2.5, 5.0, True), (2.0, 5.0, False), (12.0, 5.0, False)]
)
def test_the_norm_keeps_near_where_it_began(initial: float, final: float, passed: bool) -> None:
    found = norm_ratio(initial, final, 2.0)
    assert (found.passed, found.measured) == (passed, max(final / initial, initial / final))


def test_what_nobody_measured_is_no_proof() -> None:
    for found in (entropy((), 0.1), norm_ratio(None, 5.0, 2.0), norm_ratio(5.0, 0.0, 2.0)):
        assert (found.passed, found.measured, found.otherwise) == (False, None, CANDIDATE)
        assert "did not measure " in str(found.reason)


def test_only_what_is_asked_is_looked_at() -> None:
    made = trained(curve([0.5, 0.75]))
    asked = [one.criterion for one in of_training(made, Rules(), min_vote_share=0.5)]
    assert asked == ["answers", "vote_share"]
    strict = Rules(min_vote_rise=0.25, min_entropy=0.1, min_length_ratio=0.5, max_length_ratio=2, max_norm_ratio=1.25)
    findings = of_training(
        trained(curve([0.5, 0.75]), entropies=(1.0, 0.2), initial_norm=4.0), strict, min_vote_share=0.75
    )
    assert {one.criterion: one.measured for one in findings} == {
        "answers": 2,
        "vote_share": 0.75,
        "vote_rise": 0.25,
        "entropy": 0.2,
        "length_ratio": 1.0,
        "length_ratio_most": 1.0,
        "norm_ratio": 1.25,
    }
    assert ruling(findings).state is ACTIVE


def test_a_curve_without_steps_is_an_error() -> None:
    with pytest.raises(TrainingError, match="the trainer returned no step"):
        of_training(trained(()), Rules(), min_vote_share=0.0)


# --- the probe ------------------------------------------------------------------------------------------------


def test_answers_are_counted_before_and_after() -> None:
    both, fixed, broken, neither = (True, True), (False, True), (True, False), (False, False)
    assert count_answers([both, both, fixed, broken, neither]) == (2, 1, 1)
    assert (PROBED.before, PROBED.after) == (4, 4)


@pytest.mark.parametrize(
    ("own", "fixed", "broken", "may_lose", "state"),
    [
        ((True, True), 0, 0, 0, ACTIVE),
        ((False, False), 0, 0, 0, ACTIVE),  # it never had it: nothing is lost
        ((False, True), 1, 1, 0, ACTIVE),
        ((True, False), 0, 0, 0, CANDIDATE),
        ((True, True), 1, 2, 0, QUARANTINED),
        ((True, True), 1, 2, 1, ACTIVE),
        ((True, False), 0, 2, 1, QUARANTINED),  # the graver of two
    ],
)
def test_a_memory_that_loses_its_own_question_is_kept_and_one_that_harms_others_is_put_away(
    own: tuple[bool, bool], fixed: int, broken: int, may_lose: int, state: MemoryState
) -> None:
    result = replace(PROBED, own_before=own[0], own_after=own[1], kept=1, fixed=fixed, broken=broken)
    found = ruling(of_probe(result, may_lose=may_lose), result)
    assert found.state is state
    assert (found.reason is None) == (state is ACTIVE)
    assert found.probe is result


# --- rulings --------------------------------------------------------------------------------------------------


def finding(passed: bool, otherwise: MemoryState, name: str = "one") -> Finding:
    reason = None if passed else f"{name} failed"
    return Finding(criterion=name, measured=1.0, bound=2.0, passed=passed, otherwise=otherwise, reason=reason)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([CANDIDATE, QUARANTINED]))))
def test_a_memory_serves_only_if_nothing_speaks_against_it(told: list[tuple[bool, MemoryState]]) -> None:
    found = ruling([finding(passed, state) for passed, state in told])
    failed = {state for passed, state in told if not passed}
    expected = QUARANTINED if QUARANTINED in failed else CANDIDATE if failed else ACTIVE
    assert found.state is expected
    assert (found.reason is None) == (not failed)


def test_every_reason_is_given_and_the_ledger_gets_numbers_alone() -> None:
    found = ruling([finding(True, CANDIDATE, "a"), finding(False, CANDIDATE, "b"), finding(False, QUARANTINED, "c")])
    assert found.reason == "b failed; c failed"
    detail = replace(found, probe=PROBED).detail()
    assert detail["criteria"]["b"] == {"measured": 1.0, "bound": 2.0, "passed": False}
    assert detail["probe"] == {
        "own_before": True, "own_after": True, "past": 4, "kept": 2, "fixed": 1, "broken": 1, "tokens": 60,
        "seconds": 0.5, "before": 4, "after": 4,
    }  # fmt: skip
    assert ruling([]).detail() == {}


# --- what the trainer measures --------------------------------------------------------------------------------


def test_the_entropy_of_what_was_drawn() -> None:
    assert numerics.drawn_entropy([[-1.0, -2.0], [-3.0]]) == pytest.approx(2.0)
    assert numerics.drawn_entropy([[], []]) == 0.0


def test_the_norm_is_that_of_all_numbers_together() -> None:
    assert numerics.norm_of([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]) == pytest.approx(5.0)
    assert trained(curve([0.5])).norm == pytest.approx(5.0)


# --- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"min_length_ratio": 2, "max_length_ratio": 1}, r"min_length_ratio \(2\) is above max_length_ratio \(1\)"),
        ({"min_vote_rise": 2}, "setting 'admission.min_vote_rise': got '2'; Input should be less than or equal to 1"),
        ({"max_norm_ratio": 0.5}, "setting 'admission.max_norm_ratio': got '0.5'"),
        ({"probe": "perhaps"}, "setting 'admission.probe': got 'perhaps'"),
        ({"probing": True}, "unknown setting 'admission.probing'"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence) as caught:
        Settings(admission=wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"admission": {"min_entropy": 0.1}, "learning": {"trainer": "trl"}},
            "admission.min_entropy needs what only learning.trainer 'native' measures; got 'trl'",
        ),
        (
            {"admission": {"min_entropy": 0.1}, "engine": "vllm"},
            "admission.min_entropy needs what only engine 'native' says of its rollouts; got 'vllm'",
        ),
        (
            {"admission": {"min_vote_rise": 0.1}, "learning": {"objective": "sft_greedy"}},
            "admission.min_vote_rise is about votes, and learning.objective 'sft_greedy' has none",
        ),
    ],
)
def test_rules_that_could_never_be_met_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        check_settings(Settings(**values))
