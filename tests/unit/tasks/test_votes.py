"""Votes: classes, majority and rewards, by hand and by property."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_agent.errors import TaskError
from elm_agent.tasks.votes import Majority, group_answers, majority


def same_value(left: str, right: str) -> bool:
    return Fraction(left) == Fraction(right)


def by_hand(answers: list[str | None]) -> Majority:
    return majority(answers, same_value)


def test_groups_by_meaning_in_order_of_appearance() -> None:
    grouping = group_answers(["1/2", "3", None, "0.5", "3", "2/4"], same_value)
    assert grouping.classes == ((0, 3, 5), (1, 4))
    assert dict(grouping.undecided) == {}


def test_majority_by_hand() -> None:
    vote = by_hand(["54", "56", None, "56.0", "54", "112/2", "7", None])
    assert vote.answer == "56"
    assert vote.members == (1, 3, 5)
    assert vote.share == 3 / 8
    assert vote.rewards_G == (0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)
    assert dict(vote.failures) == {}


def test_ties_go_to_the_earliest() -> None:
    assert by_hand(["2", "1", "1", "2"]).answer == "2"
    assert by_hand([None, "1", "2"]).answer == "1"
    assert by_hand(["3", "1", "1"]).answer == "1"


def test_nobody_answered() -> None:
    assert by_hand([None, None]) == Majority(None, (), 0.0, (0.0, 0.0))
    assert by_hand([]) == Majority(None, (), 0.0, ())


def fails_on_bad(left: str, right: str) -> bool:
    if "bad" in (left, right):
        raise TaskError("too slow")
    return same_value(left, right)


def test_a_failed_comparison_is_a_failure_not_a_zero() -> None:
    vote = majority(["bad", "5", "6", "5.0", None, "bad"], fails_on_bad)
    assert vote.answer == "bad"  # two equal strings need no comparison, and came first
    assert vote.rewards_G == (1.0, None, None, None, 0.0, 1.0)
    assert dict(vote.failures) == dict.fromkeys((1, 2, 3), "too slow")


def test_one_bad_answer_spoils_no_other() -> None:
    vote = majority(["bad", "5", "6", "5.0", None], fails_on_bad)
    assert (vote.answer, vote.members, vote.share) == ("5", (1, 3), 2 / 5)
    assert vote.rewards_G == (None, 1.0, 0.0, 1.0, 0.0)
    assert dict(vote.failures) == {0: "too slow"}


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(ValueError, match="Invalid literal"):
        by_hand(["one", "two"])


answers_lists = st.lists(
    st.none() | st.integers(0, 4).map(str) | st.integers(0, 4).map(lambda n: f"{2 * n}/2"), max_size=12
)


@given(answers_lists)
def test_classes_partition_the_answered(answers: list[str | None]) -> None:
    classes = group_answers(answers, same_value).classes
    members = sorted(index for one in classes for index in one)
    assert members == [index for index, answer in enumerate(answers) if answer is not None]
    assert [one[0] for one in classes] == sorted(one[0] for one in classes)
    for one in classes:
        assert list(one) == sorted(one)
        assert len({Fraction(answers[index] or "") for index in one}) == 1
    assert len({Fraction(answers[one[0]] or "") for one in classes}) == len(classes)


@given(answers_lists)
def test_majority_agrees_with_counting(answers: list[str | None]) -> None:
    vote = by_hand(answers)
    values = [None if answer is None else Fraction(answer) for answer in answers]
    counts = [values.count(value) for value in values if value is not None]
    assert len(vote.members) == max(counts, default=0)
    assert vote.share == (len(vote.members) / len(answers) if answers else 0.0)
    assert vote.rewards_G == tuple(float(index in vote.members) for index in range(len(answers)))
    if counts:
        assert vote.members[0] == next(
            index for index, value in enumerate(values) if value is not None and values.count(value) == max(counts)
        )


@given(answers_lists, st.randoms(use_true_random=False))
def test_the_order_of_the_answers_moves_no_share(answers: list[str | None], random: object) -> None:
    shuffled = list(answers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert by_hand(shuffled).share == by_hand(answers).share
