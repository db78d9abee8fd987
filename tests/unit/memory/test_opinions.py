"""Who wins a vote of two candidates and further memories, worked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_agent import Settings
from elm_agent.errors import SettingsError, VerificationError
from elm_agent.memory.answering import decide
from elm_agent.memory.opinions import Heard, hear, stood, undecided
from elm_agent.records import Candidate, Route, Verdict
from elm_agent.tasks import get_task
from elm_agent.testing.doubles import FixedVerifier
from elm_agent.verification import MeanLogprob

TASK = get_task("number")
ANSWERS = st.none() | st.integers(0, 3).map(str)
SCORES = st.floats(-4, 0)


def said(answer: str | None, score: float = -1.0, memory: str | None = None) -> Candidate:
    return Candidate(
        text=f"It is {answer}.",
        answer=answer,
        tokens=4,
        mean_logprob=score,
        self_certainty=1.0,
        finished=True,
        seconds=0.1,
        memory_id=memory,
    )


def heard(memory: Candidate, plain: Candidate, *opinions: Candidate, lead: int = 0) -> Heard:
    decided = decide("?", memory, plain, TASK, MeanLogprob())
    assert undecided(decided)
    return hear("?", decided, opinions, TASK, MeanLogprob(), lead=lead)


@pytest.mark.parametrize(
    ("opinions", "lead", "expected"),
    [
        ((), 0, (Route.MEMORY, "2", "1 of 2 answers say '2', the verifier's choice of 2 such")),
        ((), 1, (Route.ZERO_SHOT, "1", "1 of 2 answers say '1'")),
        (("2",), 1, (Route.MEMORY, "2", "2 of 3 answers say '2'")),
        (("2",), 2, (Route.ZERO_SHOT, "1", "1 of 3 answers say '1', and no other leads it by 2")),
        (("2", "1", "2"), 2, (Route.ZERO_SHOT, "1", "2 of 5 answers say '1', and no other leads it by 2")),
        (("2", "3", "2"), 2, (Route.MEMORY, "2", "3 of 5 answers say '2'")),
        (("1", "1", "2"), 2, (Route.ZERO_SHOT, "1", "3 of 5 answers say '1'")),
        (("3", "3", "2"), 1, (Route.MEMORY, "2", "2 of 5 answers say '2', the verifier's choice of 2 such")),
    ],
)
def test_another_answer_has_to_lead_the_plain_one(
    opinions: tuple[str, ...], lead: int, expected: tuple[Route, str, str]
) -> None:
    found = heard(said("2", -0.1, "near"), said("1", -3.0), *(said(one, -3.0, "o") for one in opinions), lead=lead)
    assert (found.decision.route, found.decision.answer, found.decision.reason) == expected
    assert found.votes == int(expected[2][0])


def test_a_lead_that_nothing_can_reach_is_refused() -> None:
    assert Settings(verification={"lead": 2, "opinions": 1, "example": True}).verification.lead == 2
    with pytest.raises(SettingsError, match=r"lead \(2\) is more than any answer can be ahead: .* bring 1"):
        Settings(verification={"lead": 2, "opinions": 1})


def test_an_opinion_settles_it_whatever_the_verifier_likes() -> None:
    found = heard(said("2", -3.0, "near"), said("1", -0.1), said("2.0", -3.0, "other"), said("7", -0.1, "far"))
    assert (found.decision.route, found.decision.answer, found.speaker) == (Route.MEMORY, "2", None)
    assert (found.votes, found.voters) == (2, 4)
    assert found.decision.reason == "2 of 4 answers say '2'"
    assert found.decision.memory is not None
    assert (found.decision.memory.memory_id, found.decision.memory.score) == ("near", -3.0)


def test_opinions_for_the_plain_answer_keep_it() -> None:
    found = heard(said("2", -0.1, "near"), said("1", -3.0), said("1", -3.0, "other"))
    assert (found.decision.route, found.decision.answer, found.decision.text) == (Route.ZERO_SHOT, "1", "It is 1.")


def test_an_opinion_that_wins_against_both_speaks_for_the_memories() -> None:
    found = heard(said("2", -1.0, "near"), said("1", -1.0), said("3", -3.0, "b"), said(None, 0.0, "c"), said("3"))
    assert (found.decision.route, found.decision.answer, found.speaker) == (Route.MEMORY, "3", 0)
    assert found.decision.memory is not None
    assert (found.decision.memory.memory_id, found.decision.memory.score) == ("b", None)
    assert found.decision.zero_shot.answer == "1"


@pytest.mark.parametrize(
    ("memory", "plain", "opinion", "answer", "speaker"),
    [
        (-1.0, -2.0, -3.0, "2", None),
        (-2.0, -1.0, -3.0, "1", None),
        (-2.0, -3.0, -1.0, "3", 0),
        (-1, -1, -1, "1", None),
    ],
)
def test_a_tie_is_the_verifiers_and_of_equals_the_plain_one_stands(
    memory: float, plain: float, opinion: float, answer: str, speaker: int | None
) -> None:
    found = heard(said("2", memory, "near"), said("1", plain), said("3", opinion, "other"))
    assert (found.decision.answer, found.speaker, found.votes) == (answer, speaker, 1)
    assert str(found.decision.reason).endswith(f"1 of 3 answers say '{answer}', the verifier's choice of 3 such")


def test_the_best_of_a_class_speaks_for_it_in_a_tie() -> None:
    found = heard(said("2", -1.0, "near"), said("1", -1.5), said("1", -0.5, "b"), said("2", -0.9, "c"))
    assert found.decision.route is Route.ZERO_SHOT, "b gave the plain answer, and is the surest of the four"


@given(memory=SCORES, plain=SCORES)
def test_without_opinions_it_is_the_choice_between_two(memory: float, plain: float) -> None:
    pair = said("2", memory, "near"), said("1", plain)
    decided = decide("?", *pair, TASK, MeanLogprob())
    found = hear("?", decided, [], TASK, MeanLogprob())
    assert (found.decision.route, found.decision.answer) == (decided.route, decided.answer)


@given(st.lists(st.tuples(ANSWERS, SCORES), max_size=6), SCORES, SCORES)
def test_no_answer_had_more_votes_than_the_one_returned(
    others: Sequence[tuple[str | None, float]], memory: float, plain: float
) -> None:
    opinions = [said(answer, score, f"m{n}") for n, (answer, score) in enumerate(others)]
    found = heard(said("2", memory, "near"), said("1", plain), *opinions)
    given_answers = ["2", "1", *(one.answer for one in opinions)]
    assert given_answers.count(found.decision.answer) == found.votes
    assert all(given_answers.count(one) <= found.votes for one in given_answers if one is not None)
    if found.speaker is not None:
        assert opinions[found.speaker].answer == found.decision.answer
        assert found.decision.answer not in ("1", "2")


@pytest.mark.parametrize(
    ("memory", "plain"), [(said("1"), said("1")), (said(None), said("1")), (said("1"), said(None)), (said(None),) * 2]
)
def test_what_agrees_or_has_no_answer_needs_nobody(memory: Candidate, plain: Candidate) -> None:
    assert not undecided(decide("?", memory, plain, TASK, MeanLogprob()))


def test_a_comparison_or_verifier_that_failed_is_not_talked_over() -> None:
    assert not undecided(decide("?", said("2"), said("1"), TASK, FixedVerifier(fail=True)))


def test_a_verifier_with_too_few_verdicts_is_named() -> None:
    class Short(FixedVerifier):
        def score(self, question: str, candidates: Sequence[Candidate]) -> list[Verdict]:
            return super().score(question, candidates)[:2]

    decided = decide("?", said("2", memory="near"), said("1"), TASK, Short())
    with pytest.raises(VerificationError, match="expected 3 verdicts; got 2"):
        hear("?", decided, [said("3", memory="other")], TASK, Short())


@pytest.mark.parametrize(
    ("said_answer", "plain", "returned", "route"),
    [
        ("2", "2.0", "2", Route.AGREED),
        ("2", "1", "2", Route.MEMORY),
        ("2", "1", "1", Route.ZERO_SHOT),
        ("2", "1", "3", Route.OUTVOTED),
        ("1", "1", "3", Route.OUTVOTED),
        (None, "1", "1", Route.ZERO_SHOT),
        (None, "1", "3", Route.OUTVOTED),
    ],
)
def test_how_an_answer_stood_is_told_by_what_was_returned(
    said_answer: str | None, plain: str, returned: str, route: Route
) -> None:
    decided = decide("?", said("7", memory="near"), said(plain), TASK, MeanLogprob())
    assert stood(said(said_answer), replace(decided, answer=returned), TASK) is route


def test_what_cannot_be_compared_says_nothing_of_a_memory() -> None:
    class Broken:
        def equivalent(self, left: str, right: str) -> bool:
            raise RuntimeError(f"{left} and {right}")

    decided = decide("?", said("2"), said("1"), TASK, MeanLogprob())
    broken: Any = Broken()
    assert stood(said("2"), decided, broken) is Route.FAILED_MEMORY
