"""The calibration of abstention: fits against numbers worked by hand and a general optimizer, and what is used."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from elm_agent.bench.filling import use_of
from elm_agent.errors import SettingsError
from elm_agent.memory.abstention import Abstaining, Curve, Samples, fit, fraction_of, samples_of
from elm_agent.memory.recall import recall
from elm_agent.memory.worker import Worker
from elm_agent.records import Calibration, Effect, JobRecord, KeyKind, Route, UseOutcome, utcnow
from elm_agent.settings import Settings
from elm_agent.storage.bank import Bank
from elm_agent.storage.calibrations import UseSeen
from elm_agent.storage.posterior import Weights
from elm_agent.testing.doubles import FakeModel

LOG3 = math.log(3)
UNKNOWN = UseOutcome.UNKNOWN


def samples(*told: tuple[float, float, float, float]) -> Samples:
    """Of (similarity, utility, helped, hurt)."""
    table = np.array(told, dtype=np.float64).reshape(-1, 4)
    return Samples(features_N2=table[:, :2], helped_N=table[:, 2], hurt_N=table[:, 3])


def calibration(intercept: float, of_similarity: float, of_utility: float = 0.0, uses: int = 40) -> Calibration:
    return Calibration(
        namespace="ns",
        kind=KeyKind.INPUT,
        model_id="sha256:m",
        intercept=intercept,
        of_similarity=of_similarity,
        of_utility=of_utility,
        uses=uses,
        helped=20.0,
        hurt=20.0,
        fitted_at=utcnow(),
    )


# --- the fit --------------------------------------------------------------------------------------------------


def test_two_similarities_meet_their_shares() -> None:
    """Far: 1 of 4 helped; near: 3 of 4. The logits are -log 3 and log 3, so it is even half-way."""
    told = samples((0.0, 0.0, 1, 3), (1.0, 0.0, 3, 1))
    found = fit(told, ridge=1e-9)
    assert (found.intercept, found.of_similarity, found.of_utility) == pytest.approx((-LOG3, 2 * LOG3, 0.0))
    made = calibration(found.intercept, found.of_similarity)
    assert made.chance(0.0, 0.0) == pytest.approx(0.25)
    assert made.chance(1.0, 0.0) == pytest.approx(0.75)
    assert made.threshold(0.5) == pytest.approx(0.5)
    assert made.threshold(0.75) == pytest.approx(1.0)


def test_utility_counts_as_similarity_does() -> None:
    found = fit(samples((0.5, -1.0, 1, 3), (0.5, 1.0, 3, 1)), ridge=1e-9)
    assert (found.intercept, found.of_similarity, found.of_utility) == pytest.approx((0.0, 0.0, LOG3))
    made = calibration(0.0, 2.0, 4.0)
    assert made.threshold(0.5, utility=-0.25) == pytest.approx(0.5), "2 s + 4 u = 0"
    assert calibration(1.0, 0.0).threshold(0.5) is None


def test_nearer_is_never_worse() -> None:
    """What is seen says the opposite: then similarity says nothing, and all of it is one share of one half."""
    found = fit(samples((0.0, 0.0, 3, 1), (1.0, 0.0, 1, 3)), ridge=1e-9)
    assert (found.of_similarity, found.of_utility) == (0.0, 0.0)
    assert found.intercept == pytest.approx(0.0, abs=1e-8)


def test_no_use_says_nothing_and_few_say_little() -> None:
    assert fit(samples()) == Curve(0.0, 0.0, 0.0)
    found = fit(samples((0.9, 0.0, 3, 1)), ridge=1.0)
    # the slope of 3 log p + log(1 - p) - b^2 / 2 is nil there: 3 - 4 p = b
    chance = 1 / (1 + math.exp(-found.intercept))
    assert 3 - 4 * chance == pytest.approx(found.intercept)
    assert 0.5 < chance < 0.75


def test_all_of_one_kind_stays_finite() -> None:
    never = fit(samples(*[(0.5 + n / 20, 0.0, 0, 1) for n in range(10)]))
    assert all(math.isfinite(number) for number in (never.intercept, never.of_similarity, never.of_utility))
    assert calibration(never.intercept, never.of_similarity).chance(0.7, 0.0) < 0.3


SHARE = st.floats(0, 1).map(lambda value: round(value, 3))
TOLD = st.lists(
    st.tuples(st.floats(-1, 1), st.floats(-1, 1), SHARE, SHARE).filter(lambda one: one[2] + one[3] > 0),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(TOLD, st.sampled_from([0.1, 1.0, 10.0]))
def test_no_curve_that_keeps_to_the_rule_is_likelier(
    told: list[tuple[float, float, float, float]], ridge: float
) -> None:
    """Against a general optimizer with the same bounds."""
    made = samples(*told)
    found = fit(made, ridge=ridge)
    assert found.of_similarity >= 0
    assert found.of_utility >= 0
    centre, spread = made.features_N2.mean(axis=0), made.features_N2.std(axis=0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    scaled = (made.features_N2 - centre) / spread

    def loss(at: Any) -> float:
        logits = at[0] + scaled @ at[1:]
        said = made.helped_N * np.logaddexp(0, -logits) + made.hurt_N * np.logaddexp(0, logits)
        return float(said.sum() + ridge / 2 * (at @ at))

    other = minimize(loss, np.zeros(3), bounds=[(None, None), (0, None), (0, None)], method="L-BFGS-B")
    slopes = np.array([found.of_similarity, found.of_utility])
    mine = loss(np.array([found.intercept + centre @ slopes, *(slopes * spread)]))
    assert mine <= other.fun + 1e-6


@given(TOLD, st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_chance_never_falls(
    told: list[tuple[float, float, float, float]], similarity: float, utility: float, nearer: float, better: float
) -> None:
    found = fit(samples(*told))
    made = calibration(found.intercept, found.of_similarity, found.of_utility)
    here = made.chance(similarity, utility)
    assert 0 <= here <= made.chance(similarity + nearer, utility + better) <= 1


# --- what uses tell -------------------------------------------------------------------------------------------


def seen(memory: str, similarity: float, route: Route, outcome: UseOutcome, effect: Effect | None = None) -> UseSeen:
    return UseSeen(memory=("ns", memory), similarity=similarity, route=route, outcome=outcome, effect=effect)


def test_a_use_is_explained_by_what_was_known_before_it() -> None:
    told = samples_of(
        [
            seen("a", 0.9, Route.MEMORY, UseOutcome.FIXED),  # nothing known: utility 0
            seen("a", 0.8, Route.AGREED, UNKNOWN),  # no sample, but it moves what is known: (2, 2, 1)
            seen("b", 0.7, Route.ZERO_SHOT, UNKNOWN),  # the verifier's word: a quarter of a harm
            seen("a", 0.4, Route.MEMORY, UseOutcome.BROKEN),  # (2 - 1) / 5
            seen("a", 0.3, Route.MEMORY_ALONE, UNKNOWN),  # nothing was compared
            seen("a", 0.2, Route.MEMORY, UNKNOWN, Effect.PERHAPS_HURT),  # (2 - 2) / 6
        ],
        Weights(),
    )
    assert told.features_N2 == pytest.approx(np.array([[0.9, 0.0], [0.7, 0.0], [0.4, 0.2], [0.2, 0.0]]))
    assert told.helped_N.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert told.hurt_N.tolist() == [0.0, 0.25, 1.0, 0.5]
    assert samples_of([], Weights()).uses == 0


# --- what is passed over --------------------------------------------------------------------------------------


@pytest.fixture
def learnt(bank: Bank, enqueue: Callable[..., JobRecord], make_worker: Callable[..., Worker]) -> Bank:
    for question in ("What is 7 times 8?", "What is 7 times 9?"):
        enqueue(question)
    make_worker().run(once=True)
    return bank


def find(bank: Bank, abstaining: Abstaining | None, **more: Any) -> Any:
    return recall("What is 7 times 8?", bank=bank, model=FakeModel(), namespace="ns", abstaining=abstaining, **more)


def test_what_is_unlikely_to_help_is_not_used(learnt: Bank) -> None:
    found = find(learnt, Abstaining(calibration=calibration(-LOG3, 0.0)))
    assert (found.memory_id, found.failed) == (None, False)
    assert found.reason == (
        "the best chance that a memory helps is 0.250, the least is 0.500 (calibrated on 40 uses)"
    )
    assert [one.chance for one in found.considered] == pytest.approx([0.25, 0.25])


def test_what_is_likely_to_help_is_found_as_ever(learnt: Bank) -> None:
    plain = find(learnt, None)
    found = find(learnt, Abstaining(calibration=calibration(LOG3, 0.0)))
    assert (found.memory_id, found.similarity, found.reason) == (plain.memory_id, plain.similarity, None)


def test_without_a_calibration_nothing_changes(learnt: Bank) -> None:
    assert find(learnt, Abstaining(calibration=None)).memory_id == find(learnt, None).memory_id


def test_a_farther_memory_that_helps_is_taken_before_a_nearer_that_hurts(learnt: Bank) -> None:
    nearest = find(learnt, None).memory_id
    for n in range(3):
        learnt.record_use(use_of("ns", nearest, id=f"use_{n}", outcome=UseOutcome.BROKEN))
    found = find(learnt, Abstaining(calibration=calibration(0.0, 0.0, 4.0)))
    assert found.memory_id not in (None, nearest), "utility -0.5 makes its chance 0.12, the other's is even"


def test_some_questions_explore_and_say_so(learnt: Bank) -> None:
    found = find(learnt, Abstaining(calibration=calibration(-LOG3, 0.0), explore=1.0))
    assert found.memory_id is not None
    assert str(found.reason).endswith("(calibrated on 40 uses); it is used all the same, to go on learning")


def test_the_share_that_explores_is_a_share() -> None:
    drawn = [fraction_of("abstention", 0, f"question {n}") for n in range(2000)]
    assert all(0 <= one < 1 for one in drawn)
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.03)
    assert fraction_of("abstention", 0, "a  b") == fraction_of("abstention", 0, "a b")
    assert fraction_of("abstention", 1, "a b") != fraction_of("abstention", 0, "a b")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"mode": "auto"}, "setting 'abstention.mode': got 'auto'; Input should be 'manual' or 'calibrated'"),
        ({"min_chance": 1}, "setting 'abstention.min_chance': got '1'; Input should be less than 1"),
        ({"min_uses": 1}, "setting 'abstention.min_uses': got '1'"),
        ({"ridge": 0}, "setting 'abstention.ridge': got '0'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        Settings(abstention=wrong)
