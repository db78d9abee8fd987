"""The second phase of retrieval: the order of the nearest, worked by hand, and what it does on a bank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_agent.bench.filling import use_of
from elm_agent.memory.ranking import How, Ranked, Ranking, rank, scored
from elm_agent.memory.recall import Recall, recall
from elm_agent.memory.worker import Worker
from elm_agent.records import Effect, Feedback, Hit, JobRecord
from elm_agent.storage.bank import Bank
from elm_agent.storage.posterior import Posterior
from elm_agent.testing.doubles import FakeModel

NEUTRAL = Posterior(1, 1, 1, 0)
GOOD, BAD = Posterior(9, 1, 2, 9), Posterior(2, 1, 9, 9)  # utility +7/12 and -7/12
Find = Callable[..., Recall]


def order(question: str, worth: dict[str, tuple[float, Posterior]], how: How, **more: float) -> list[Ranked]:
    hits = sorted((Hit(name, near, "ns") for name, (near, _) in worth.items()), key=lambda hit: -hit.similarity)
    posteriors = {("ns", name): found for name, (_, found) in worth.items()}
    return rank(question, hits, posteriors, Ranking(how=how, **more))  # type: ignore[arg-type]


def ids(ranked: list[Ranked]) -> list[str]:
    return [one.hit.memory_id for one in ranked]


def test_off_is_the_order_of_the_similarities() -> None:
    ranked = order("q", {"a": (0.9, BAD), "b": (0.8, GOOD), "c": (-0.1, NEUTRAL)}, "nearest")
    assert ids(ranked) == ["a", "b", "c"]
    assert [one.score for one in ranked] == [0.9, 0.8, -0.1]


def test_similarity_times_expected_utility() -> None:
    ranked = order("q", {"bad": (0.9, BAD), "new": (0.6, NEUTRAL), "good": (0.5, GOOD)}, "mean")
    assert ids(ranked) == ["good", "new", "bad"]
    assert [one.nearness for one in ranked] == [3, 2, 1]
    assert [one.score for one in ranked] == pytest.approx([0.5 * 19 / 12, 0.6, 0.9 * 5 / 12])
    assert [one.explored for one in ranked] == pytest.approx([7 / 12, 0, -7 / 12])
    half = order("q", {"bad": (0.9, BAD), "new": (0.6, NEUTRAL)}, "mean", weight=0.5)
    assert [one.score for one in half] == pytest.approx([0.9 * 17 / 24, 0.6])
    assert ids(order("q", {"bad": (0.9, BAD), "good": (0.5, GOOD)}, "mean", weight=0.0)) == ["bad", "good"]


def test_equal_scores_leave_the_nearer_first() -> None:
    assert ids(order("q", {"a": (0.0, BAD), "b": (0.0, GOOD), "c": (0.0, NEUTRAL)}, "mean")) == ["a", "b", "c"]


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1))
def test_more_utility_never_lowers_a_score(similarity: float, one: float, other: float, weight: float) -> None:
    low, high = sorted((one, other))
    assert scored(similarity, low, weight) <= scored(similarity, high, weight)
    assert scored(similarity, 0.0, weight) == similarity


def test_ucb_prefers_what_is_less_known_of_two_equals() -> None:
    known = Posterior(30, 30, 30, 87)
    worth = {"known": (0.5, known), "new": (0.5, NEUTRAL)}
    assert ids(order("q", worth, "ucb")) == ["new", "known"]
    assert ids(order("q", worth, "ucb", ucb_width=0.0)) == ["known", "new"]
    best = order("q", {"new": (0.5, NEUTRAL)}, "ucb", ucb_width=99)
    assert best[0].explored == 1.0, "nothing is worth more than always helping"


def test_thompson_draws_by_seed_and_question_whatever_else_is_there() -> None:
    worth = dict.fromkeys("abcdef", (0.5, NEUTRAL))

    def drawn(question: str, seed: int = 0, names: str = "abcdef") -> dict[str, float]:
        ranked = order(question, {name: worth[name] for name in names}, "thompson", seed=seed)
        return {one.hit.memory_id: one.explored for one in ranked}

    first = drawn("What is 6 times 7?")
    assert drawn("What is  6 times 7? ") == first, "white space does not make another question"
    assert drawn("What is 6 times 7?", names="fb") == {"f": first["f"], "b": first["b"]}
    assert drawn("What is 6 times 8?") != first
    assert drawn("What is 6 times 7?", seed=1) != first
    assert len(set(first.values())) == 6
    firsts = Counter(next(iter(drawn(f"question {n}"))) for n in range(120))
    assert min(firsts[name] for name in "abcdef") > 5, "among equals each has its turn"


@pytest.mark.parametrize(("how", "most"), [("nearest", 1.0), ("mean", 0.1), ("ucb", 0.2), ("thompson", 0.2)])
def test_a_hub_that_harms_loses_its_questions(how: How, most: float) -> None:
    """One memory is nearest to every question and hurts three times in four; the right one helps as often."""
    dice = np.random.default_rng(0)
    counts = {"hub": [1.0, 1.0], "right": [1.0, 1.0]}  # helped, hurt
    retrieved = []
    for n in range(150):
        worth = {name: (near, Posterior(counts[name][0], 1.0, counts[name][1], 0)) for name, near in
                 (("hub", 0.9), ("right", 0.85))}  # fmt: skip
        chosen = ids(order(f"question {n}", worth, how))[0]
        retrieved.append(chosen)
        counts[chosen][int(dice.random() < (0.75 if chosen == "hub" else 0.25))] += 1
    share = retrieved[50:].count("hub") / 100
    assert share <= most
    assert how != "nearest" or share == 1.0


# --- on a bank ----------------------------------------------------------------------------------------------

NEAR, FAR = "What is 7 times 8?", "Name a colour"


@pytest.fixture
def find(bank: Bank, enqueue: Callable[..., JobRecord], make_worker: Callable[..., Worker]) -> Find:
    for question in (NEAR, FAR):
        enqueue(question)
    make_worker().run(once=True)

    def found(question: str = NEAR, **more: object) -> Recall:
        return recall(question, bank=bank, model=FakeModel(), **({"namespace": "ns"} | more))  # type: ignore[arg-type]

    return found


def question_of(bank: Bank, found: Recall) -> str:
    assert found.memory_id is not None
    return bank.memory("ns", found.memory_id).question


def hurt(bank: Bank, found: Recall, times: int) -> None:
    assert found.memory_id is not None
    for _ in range(times):
        use = use_of("ns", found.memory_id)
        bank.record_use(use)
        bank.note_feedback("ns", use.id, Feedback.WRONG, effect=Effect.HURT)


def test_a_memory_that_harmed_is_passed_by(bank: Bank, find: Find) -> None:
    by = Ranking(how="mean")
    nearest = find()
    assert question_of(bank, nearest) == question_of(bank, find(ranking=by)) == NEAR, "without uses nothing changes"
    hurt(bank, nearest, 40)
    assert question_of(bank, find()) == NEAR
    passed = find(ranking=by)
    assert question_of(bank, passed) == FAR
    assert passed.prompt is not None
    assert [one.nearness for one in passed.considered] == [2, 1]
    assert passed.similarity == passed.considered[0].hit.similarity


def test_the_threshold_stands_before_the_order(bank: Bank, find: Find) -> None:
    hurt(bank, find(), 40)
    found = find(ranking=Ranking(how="mean"), min_similarity=0.99)
    assert question_of(bank, found) == NEAR, "the other one is worth more, and too far away"
    assert [one.hit.similarity >= 0.99 for one in found.considered] == [True, False]
    nothing = find("Something else entirely", ranking=Ranking(how="mean"), min_similarity=0.99)
    assert nothing.memory_id is None
    assert len(nothing.considered) == 2


def test_candidates_bound_what_is_ordered_anew(bank: Bank, find: Find) -> None:
    hurt(bank, find(), 40)
    assert question_of(bank, find(ranking=Ranking(how="mean", candidates=1))) == NEAR


def test_explaining_changes_nothing_but_says_all(find: Find) -> None:
    plain, told = find(), find(explain=True)
    assert plain.considered == ()
    assert (told.memory_id, told.similarity, told.reason) == (plain.memory_id, plain.similarity, plain.reason)
    assert told.considered[0].hit.memory_id == plain.memory_id
    assert len(told.considered) == 2


def test_the_same_question_gets_the_same_memory(bank: Bank, find: Find) -> None:
    by = Ranking(how="thompson", seed=3)
    for question in (NEAR, FAR, "What is 2 and 2?"):
        assert find(question, ranking=by).memory_id == find(question, ranking=by).memory_id
    assert bank.uses("ns") == [], "looking is no use"
