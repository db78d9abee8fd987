"""What an answer may cost: gains worked by hand, what counts as proven, and the vote."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_agent.errors import SettingsError
from elm_agent.memory.answering import Decision
from elm_agent.memory.tiers import Budget, Sample, Tally, Wanted, at_least, choose, doubt_of, gain_of, vote
from elm_agent.records import Candidate, Route, Tier
from elm_agent.settings import BudgetSettings, Settings
from elm_agent.storage.posterior import Posterior
from elm_agent.tasks import get_task

TASK = get_task("number")
CHEAP, NORMAL, THOROUGH = Tier.CHEAP, Tier.NORMAL, Tier.THOROUGH
GOOD = Posterior(6.0, 1.0, 1.0, uses=10)  # h = 6/8, x = 1/8
FRESH = Posterior(1.0, 1.0, 1.0, uses=0)
NEVER = Budget(compare=0.0)
POSTERIOR = st.builds(Posterior, *[st.floats(0.1, 100)] * 3, uses=st.integers(0, 50))


def test_the_gain_of_each_tier() -> None:
    assert gain_of(CHEAP, GOOD, NEVER) == pytest.approx(5 / 8)
    assert gain_of(NORMAL, GOOD, NEVER) == pytest.approx(0.625 * 6 / 8 - 0.375 / 8)
    assert gain_of(THOROUGH, GOOD, NEVER) == pytest.approx(0.75 * 6 / 8 - 0.25 / 8)
    # of the 7 in 8 that made a difference, half help on this question
    assert gain_of(CHEAP, GOOD, NEVER, chance=0.5) == 0.0
    assert gain_of(THOROUGH, GOOD, NEVER, chance=0.5) == pytest.approx(7 / 16 * 0.5)


def test_the_best_after_the_price_is_chosen() -> None:
    found = choose("?", GOOD, NEVER, wanted="auto")
    assert found.tier is CHEAP
    assert [tier for tier, _ in found.gains] == [CHEAP, NORMAL, THOROUGH]
    assert [gain for _, gain in found.gains] == pytest.approx([0.595, 0.361875, 0.35125])
    assert found.reason == "its expected gain, less the price of its rows, is the most: +0.595"
    unsure = choose("?", GOOD, NEVER, wanted="auto", chance=0.5)
    assert unsure.tier is NORMAL
    assert dict(unsure.gains)[NORMAL] == pytest.approx(7 / 16 * 0.25 - 0.06)


def test_what_nothing_is_known_of_is_worth_two_rows_and_six_where_they_cost_nothing() -> None:
    found = choose("?", FRESH, NEVER, wanted="auto")
    assert (found.tier, [tier for tier, _ in found.gains]) == (NORMAL, [NORMAL, THOROUGH])
    assert [gain for _, gain in found.gains] == pytest.approx([0.25 / 3 - 0.06, 0.5 / 3 - 0.18])
    assert choose("?", FRESH, Budget(row_price=0.0), wanted="auto").tier is THOROUGH


def test_by_the_defaults_a_vote_is_worth_its_rows_only_of_what_nearly_always_makes_a_difference() -> None:
    """An eighth of the uses that made one, against four rows: more than 96 in 100 of them."""
    nearly, always = Posterior(48.0, 4.0, 48.0, uses=0), Posterior(49.0, 2.0, 49.0, uses=0)
    assert choose("?", nearly, NEVER, wanted="auto").tier is NORMAL
    assert choose("?", always, NEVER, wanted="auto").tier is THOROUGH
    half = Posterior(1.0, 2.0, 1.0, uses=2)  # a sixty-fourth for each row
    assert choose("?", half, Budget(row_price=0.016), wanted="auto").tier is NORMAL
    assert choose("?", half, Budget(row_price=0.015), wanted="auto").tier is THOROUGH


@given(POSTERIOR, st.floats(0, 1) | st.none(), st.sampled_from(list(Tier)))
def test_a_gain_is_a_share_of_answers(worth: Posterior, chance: float | None, tier: Tier) -> None:
    assert -1 <= gain_of(tier, worth, NEVER, chance=chance) <= 1


@given(POSTERIOR, st.sampled_from(get_args(Wanted)), st.floats(0, 1), st.text(min_size=1))
def test_only_the_proven_is_answered_cheaply(worth: Posterior, wanted: Any, compare: float, question: str) -> None:
    found = choose(question, worth, Budget(compare=compare), wanted=wanted)
    if found.tier is CHEAP:
        assert wanted in ("auto", "cheap")
        assert worth.uses >= 10
        assert at_least(worth, 1.64) >= 0
    if wanted in ("normal", "thorough"):
        assert found.tier == wanted


def test_proof_takes_uses_and_a_sure_utility() -> None:
    assert doubt_of(GOOD, NEVER) is None
    few = Posterior(6.0, 1.0, 1.0, uses=9)
    assert doubt_of(few, NEVER) == "the memory has 9 uses that told something, cheap_uses is 10"
    # utility 5/8, deviation sqrt(31/9)/8 = 0.2320: surely 0.625 - 1.64 x 0.2320
    assert at_least(GOOD, 1.64) == pytest.approx(0.2445, abs=1e-4)
    doubt = doubt_of(GOOD, Budget(cheap_utility=0.25))
    assert doubt == "the memory's utility is surely only 0.245, cheap_utility is 0.250"
    assert choose("?", few, NEVER, wanted="cheap").reason.startswith("cheap was asked for, but the memory has 9 uses")
    cheap = choose("?", GOOD, NEVER, wanted="cheap")
    assert (cheap.tier, cheap.reason) == (
        CHEAP,
        "the memory is proven: utility 0.625, surely 0.245, in 10 uses",
    )


def test_some_cheap_questions_are_answered_twice_all_the_same() -> None:
    found = choose("?", GOOD, Budget(compare=1.0), wanted="cheap")
    assert (found.tier, found.reason) == (
        NORMAL,
        "cheap was asked for, but this question is one of those that are answered twice all the same",
    )
    drawn = [choose(f"{n}?", GOOD, Budget(compare=0.25), wanted="cheap").tier for n in range(1000)]
    assert 150 < drawn.count(NORMAL) < 350


@pytest.mark.parametrize(("wanted", "tier"), [("auto", NORMAL), ("cheap", NORMAL), ("thorough", THOROUGH)])
def test_without_a_memory(wanted: Any, tier: Tier) -> None:
    assert choose("?", None, NEVER, wanted=wanted).tier is tier


# --- the vote -------------------------------------------------------------------------------------------------


def made(answer: str | None, whose: str) -> Candidate:
    return Candidate(
        text=f"{whose} {answer}", answer=answer, tokens=1, mean_logprob=0.0, self_certainty=0.0, finished=True,
        seconds=0.0, memory_id="mem_1" if whose == "memory" else None,
    )  # fmt: skip


def decided(route: Route, memory: str | None = "2", plain: str | None = "1") -> Decision:
    with_memory = None if route in (Route.NO_MEMORY, Route.FAILED_MEMORY) else made(memory, "memory")
    zero_shot = made(plain, "plain")
    chosen = with_memory if route is Route.MEMORY and with_memory is not None else zero_shot
    return Decision(
        route=route, answer=chosen.answer, text=chosen.text, reason=None, memory=with_memory, zero_shot=zero_shot
    )


@pytest.mark.parametrize(
    ("route", "samples", "expected", "text"),
    [
        # both candidates vote too
        (Route.MEMORY, ["1", "1", "3"], (Route.ZERO_SHOT, "1"), "plain 1"),
        (Route.MEMORY, ["1", "2"], (Route.MEMORY, "2"), "memory 2"),  # two each: the verifier's choice stands
        (Route.ZERO_SHOT, ["1", "2"], (Route.ZERO_SHOT, "1"), "plain 1"),
        (Route.ZERO_SHOT, ["2.0", "2"], (Route.MEMORY, "2"), "memory 2"),
        (Route.MEMORY, ["3", "3"], (Route.ZERO_SHOT, "3"), "sample 3"),  # what only the plain model said
        (Route.MEMORY, [None, None], (Route.MEMORY, "2"), "memory 2"),
        (Route.NO_MEMORY, ["3", "3"], (Route.NO_MEMORY, "3"), "sample 3"),
        (Route.NO_MEMORY, ["3", "1"], (Route.NO_MEMORY, "1"), "plain 1"),
        (Route.FAILED_MEMORY, ["3", "3"], (Route.FAILED_MEMORY, "3"), "sample 3"),
    ],
)
def test_a_vote(route: Route, samples: list[str | None], expected: tuple[Route, str], text: str) -> None:
    found, tally = vote(decided(route), [Sample(f"sample {one}", one) for one in samples], TASK)
    assert ((found.route, found.answer), found.text) == (expected, text)
    assert tally.voters == len(samples) + (2 if found.memory is not None else 1)
    assert f"{tally.votes} of {tally.voters} votes for " in str(found.reason)


def test_two_that_agree_still_agree_when_a_vote_overrules_both() -> None:
    same = decided(Route.AGREED, memory="1", plain="1")
    found, tally = vote(same, [Sample("sample 3", "3")] * 3, TASK)
    assert (found.route, found.answer, tally) == (Route.AGREED, "3", Tally(3, 5))
    assert found.reason == "3 of 5 votes for '3', against '1'"


def test_where_nobody_answers_nothing_changes() -> None:
    nobody = decided(Route.ZERO_SHOT, memory=None, plain=None)
    found, tally = vote(nobody, [Sample("?", None)], TASK)
    assert (found, tally.votes) == (nobody, 0)


# --- settings -------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_settings() -> None:
    chosen = BudgetSettings().model_dump()
    assert {name: getattr(Budget(), name) for name in chosen} == chosen


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"tier": "free"}, "setting 'budget.tier': got 'free'; Input should be 'auto', 'cheap', 'normal' or 'th"),
        ({"samples": 0}, "setting 'budget.samples': got '0'"),
        ({"vote_accuracy": 0.4}, "setting 'budget.vote_accuracy': got '0.4'"),
        ({"compare": 2}, "setting 'budget.compare': got '2'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        Settings(budget=wrong)
