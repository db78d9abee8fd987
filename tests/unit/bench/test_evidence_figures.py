"""Figures of stored lines against numbers worked by hand, and the statistics against scipy and known values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from evidence_runs import TASK, answer, both, item, learn
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from elm_agent.bench.evidence.contract import GenerationLine, Item, Phase
from elm_agent.bench.evidence.figures import MethodFigures, failures, task_figures
from elm_agent.bench.evidence.lines import Share
from elm_agent.bench.evidence.matrix import OfflineFigures, offline_figures
from elm_agent.bench.evidence.paired import concentration, mcnemar, mean_interval


def items(*made: Item) -> dict[tuple[str, str], Item]:
    return {(TASK, one.id): one for one in made}


def method(name: str, lines: Sequence[GenerationLine], **known: Item) -> MethodFigures:
    [task] = task_figures(lines, items(*known.values()))
    return next(one for one in task.methods if one.method == name)


# --- intervals and tests ----------------------------------------------------------------------------------------


def test_the_interval_is_scipys() -> None:
    values = [float(value) for value in np.random.default_rng(3).integers(-1, 2, size=40)]
    found = mean_interval({n: [value] for n, value in enumerate(values)}, resamples=5000, seed=7)
    expected = stats.bootstrap((values,), np.mean, n_resamples=5000, rng=np.random.default_rng(7)).confidence_interval
    assert found.estimate == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)
    assert (found.units, found.level, found.note) == (40, 0.95, None)


def test_seeds_of_a_question_are_drawn_together() -> None:
    """Three copies of each value hold no more evidence than one: the interval stays as wide."""
    values = [float(value) for value in np.random.default_rng(5).integers(-1, 2, size=30)]
    once = mean_interval({n: [value] for n, value in enumerate(values)})
    thrice = mean_interval({n: [value] * 3 for n, value in enumerate(values)})
    assert (once.estimate, once.low, once.high) == pytest.approx((thrice.estimate, thrice.low, thrice.high))
    apart = mean_interval({(n, seed): [value] for n, value in enumerate(values) for seed in range(3)})
    assert apart.high - apart.low < 0.7 * (once.high - once.low)  # type: ignore[operator]


def test_groups_of_unequal_size_count_by_their_values() -> None:
    assert mean_interval({"a": [1.0, 1.0, 0.0], "b": [-1.0]}).estimate == 0.25


@pytest.mark.parametrize(
    ("groups", "estimate", "note"),
    [
        ({}, None, "there is no pair to compare"),
        ({1: []}, None, "there is no pair to compare"),
        ({1: [0.0]}, 0.0, "one question has no spread"),
        ({n: [0.0] for n in range(9)}, 0.0, "all 9 questions gave the same difference"),
        ({n: [1.0] for n in range(9)}, 1.0, "all 9 questions gave the same difference"),
    ],
)
def test_an_interval_that_cannot_be_is_said(groups: dict[int, list[float]], estimate: float, note: str) -> None:
    found = mean_interval(groups)
    assert (found.estimate, found.low, found.high) == (estimate, None, None)
    assert note in (found.note or "")


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=12))
@settings(max_examples=60, deadline=None)
def test_an_interval_holds_finite_numbers_or_a_note(values: list[float]) -> None:
    found = mean_interval({n: [value] for n, value in enumerate(values)}, resamples=99)
    if found.low is None or found.high is None:
        assert found.note
    else:
        assert math.isfinite(found.low)
        assert -1 <= found.low <= found.high <= 1


def binomial(few: int, many: int) -> float:
    """Twice the lower tail of a fair coin, by counting."""
    return min(1.0, 2 * sum(math.comb(few + many, k) for k in range(few + 1)) / 2 ** (few + many))


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (2, 10, 0.03857421875),  # 2 * (1 + 12 + 66) / 4096
        (0, 5, 0.0625),  # one class alone is a test all the same
        (1, 0, 1.0),
        (6, 6, 1.0),
        (86, 150, 3.716e-05),  # Agresti's approval of the president; R's exact2x2 has this p
    ],
)
def test_mcnemar_is_exact(only_first: int, only_second: int, p: float) -> None:
    alike = [(True, True)] * 7 + [(False, False)] * 11
    found = mcnemar([(True, False)] * only_first + [(False, True)] * only_second + alike)
    assert found.p == pytest.approx(p, rel=1e-3)
    assert found.p == pytest.approx(binomial(min(only_first, only_second), max(only_first, only_second)))
    assert (found.only_first, found.only_second, found.note) == (only_first, only_second, None)


@pytest.mark.parametrize(
    ("pairs", "note"),
    [([], "no pair"), ([(True, True)], "alike in all 1"), ([(False, False), (True, True)], "alike in all 2")],
)
def test_mcnemar_without_a_difference_has_no_p(pairs: list[tuple[bool, bool]], note: str) -> None:
    found = mcnemar(pairs)
    assert found.p is None
    assert note in (found.note or "")


@pytest.mark.parametrize(
    ("counts", "pool", "gini", "entropy", "top"),
    [
        ([3, 1], 2, 0.25, 0.8112781, 0.75),
        ([3, 1], 4, 0.625, 0.4056390, 0.75),  # two memories were never retrieved
        ([5, 5, 5], 3, 0.0, 1.0, 1 / 3),
        ([9], 10, 0.9, 0.0, 1.0),
        ([1, 2], None, 1 / 6, 0.9182958, 2 / 3),
    ],
)
def test_concentration(counts: list[int], pool: int | None, gini: float, entropy: float, top: float) -> None:
    found = concentration(counts, pool=pool)
    assert (found.gini, found.entropy, found.top_share) == pytest.approx((gini, entropy, top))
    assert (found.total, found.note) == (sum(counts), None)


def test_gini_is_the_mean_difference_over_twice_the_mean() -> None:
    counts = [7, 0, 2, 2, 11]
    differences = [abs(a - b) for a in counts for b in counts]
    assert concentration(counts).gini == pytest.approx(np.mean(differences) / (2 * np.mean(counts)))


def test_concentration_of_nothing_and_of_one() -> None:
    assert concentration([]).note == "nothing was counted"
    assert concentration([0, 0]).gini is None
    assert concentration([4]).entropy is None


# --- methods ------------------------------------------------------------------------------------------------------

# Right or wrong of four questions and two seeds; None: a failure.
PLAIN = {0: [True, True, False, False], 1: [True, False, False, None]}
MEMORY = {0: [True, False, True, True], 1: [True, None, True, True]}


def small_stream() -> list[GenerationLine]:
    lines = [answer("zero_shot", n, right, seed=s) for s, row in PLAIN.items() for n, right in enumerate(row)]
    routes = ["agreed", "memory", "memory", "zero_shot"]
    for seed, row in MEMORY.items():
        for n, right in enumerate(row):
            memory = {"memory_id": None if n == 0 else f"m{n // 3}", "memory_item": f"q{n // 3}"}
            lines.append(answer("elm_kv", n, right, seed=seed, route=routes[n], tokens=30, seconds=2.0, **memory))
            lines.append(learn("elm_kv", n, seed=seed, state="active" if n else "candidate"))
    return lines


def test_a_method_is_compared_on_what_both_answered() -> None:
    found = method("elm_kv", small_stream())
    assert found.accuracy == Share(part=6, whole=7, value=6 / 7)
    assert (found.asked, found.failures, found.learn_failures, found.no_answer) == (8, 1, 0, 0)
    versus = found.versus
    assert versus is not None
    # pairs: seed 0: 11 01 10 10, seed 1: 11, and 10; question 1 and question 3 have no pair there
    assert (versus.fixed, versus.broken, versus.unpaired) == (3, 1, 1)
    assert versus.harm == Share(part=1, whole=6, value=1 / 6)
    assert versus.difference.estimate == pytest.approx(2 / 6)
    assert versus.difference.units == 4
    assert versus.mcnemar.p == pytest.approx(binomial(1, 3))


def test_seeds_stand_one_by_one() -> None:
    first, second = method("elm_kv", small_stream()).seeds
    assert (first.seed, first.accuracy.part, first.accuracy.whole, first.failures) == (0, 3, 4, 0)
    assert (second.seed, second.accuracy.part, second.accuracy.whole, second.failures) == (1, 3, 3, 1)
    assert first.versus is not None
    assert first.versus.difference.estimate == pytest.approx(0.25)
    assert second.versus is not None
    assert second.versus.difference.estimate == pytest.approx(0.5)


def test_tokens_and_seconds_of_answering_and_learning() -> None:
    found = method("elm_kv", small_stream())
    assert (found.answering.count, found.answering.tokens, found.answering.prompt_tokens) == (8, 240, 160)
    assert (found.learning.count, found.learning.tokens, found.learning.seconds) == (8, 800, 32.0)
    assert found.tokens_per_question == 130
    assert found.states == {"active": 6, "candidate": 2}


def test_zero_shot_has_no_difference_to_itself() -> None:
    found = method("zero_shot", small_stream())
    assert found.versus is None
    assert found.routing is None
    assert found.retrieval is None
    assert found.accuracy == Share(part=3, whole=7, value=3 / 7)


def test_a_text_without_an_answer_is_wrong_and_a_failure_is_not() -> None:
    found = method("icl", [answer("icl", 0, False, answer=None), answer("icl", 1, None), answer("icl", 2, True)])
    assert (found.no_answer, found.failures, found.accuracy.part, found.accuracy.whole) == (1, 1, 1, 2)


def test_failures_are_listed() -> None:
    [one, other] = failures(
        [answer("icl", 0, True), answer("icl", 1, None, seed=2), learn("icl", 1, failure="no memory")]
    )
    assert (one.phase, one.seed, one.item_id, one.reason) == (Phase.ANSWER, 2, "q1", "the model stopped")
    assert (other.phase, other.reason) == (Phase.LEARN, "no memory")


def test_without_zero_shot_the_own_plain_candidate_is_the_reference() -> None:
    rows = [(True, True), (False, True), (None, True)]
    lines = [answer("elm_kv", n, right, candidates=both(plain, right)) for n, (plain, right) in enumerate(rows)]
    found = method("elm_kv", lines)
    assert found.versus is not None
    assert (found.versus.fixed, found.versus.broken, found.versus.unpaired) == (1, 0, 1)
    assert (found.own_reference, found.reference_differs) == (2, 0)


def test_zero_shot_that_was_judged_otherwise_is_told() -> None:
    lines = [answer("zero_shot", 0, False), answer("elm_kv", 0, True, candidates=both(True, True))]
    found = method("elm_kv", lines)
    assert (found.reference_differs, found.own_reference) == (1, 0)
    assert found.versus is not None
    assert found.versus.fixed == 1  # the method zero_shot counts


def test_a_run_of_nothing_but_agreement_has_neither_interval_nor_p() -> None:
    lines = [answer(name, n, True) for name in ("zero_shot", "icl") for n in range(5)]
    versus = method("icl", lines).versus
    assert versus is not None
    assert (versus.difference.estimate, versus.difference.low, versus.mcnemar.p) == (0.0, None, None)
    assert versus.difference.note
    assert versus.mcnemar.note


def test_equal_questions_are_one_unit() -> None:
    twins = items(item(0), item(1, question="What is  0 + 1?"), item(2))
    lines = [answer(name, n, name == "icl") for name in ("zero_shot", "icl") for n in range(3)]
    [task] = task_figures(lines, twins)
    versus = task.methods[1].versus
    assert task.questions == 2
    assert versus is not None
    assert versus.difference.units == 2


def test_an_agent_is_held_against_each_baseline_but_no_oracle() -> None:
    names = ("zero_shot", "icl", "oracle", "elm_input", "elm_kv:lora")
    lines = [answer(name, n, name != "zero_shot" and n > 0) for name in names for n in range(3)]
    for name in ("elm_input", "elm_kv:lora"):
        assert [one.reference for one in method(name, lines).against] == ["icl"]
    assert method("icl", lines).against == ()


def test_forms_of_the_agent_are_compared_with_each_other_once() -> None:
    rows = {
        "zero_shot": [False] * 5,
        "elm_input": [True, False, False, True, True],
        "icl": [True] * 5,
        "elm_kv:lora": [True, True, True, False, None],
        "oracle": [True] * 5,
        "elm": [False, True, None, False, False],
    }
    lines = [
        answer(name, n, right, seed=s) for s in (0, 1) for name, row in rows.items() for n, right in enumerate(row)
    ]
    lines = [line for line in lines if line.method != "elm" or line.seed == 0]
    assert method("elm_input", lines).among == method("icl", lines).among == ()
    [lora] = method("elm_kv:lora", lines).among
    assert (lora.reference, lora.pairs, lora.seeds, lora.unpaired) == ("elm_input", 8, 2, 0)
    assert (lora.fixed, lora.broken) == (4, 2)
    assert lora.difference.estimate == pytest.approx(2 / 8)
    assert lora.mcnemar.p == pytest.approx(binomial(2, 4))
    plain = method("elm", lines).among
    assert [(one.reference, one.pairs, one.seeds) for one in plain] == [("elm_input", 4, 1), ("elm_kv:lora", 3, 1)]
    assert plain[0].difference.estimate == pytest.approx((0 - 1 + 1 - 1 - 1) / 4)


def test_a_seed_knows_whether_it_is_finished_and_of_its_own() -> None:
    lines = [answer("zero_shot", n, True) for n in range(3)]
    lines += [answer("zero_shot", n, True, seed=1, detail={"shared_with_seed": 0}) for n in range(3)]
    lines += [
        answer("icl", n, None if n else True, seed=seed) for seed, asked in ((0, 3), (1, 1)) for n in range(asked)
    ]
    made = {f"q{n}": item(n) for n in range(3)}
    assert [(one.finished, one.shared) for one in method("zero_shot", lines, **made).seeds] == [
        (True, False),
        (True, True),
    ]
    whole, begun = method("icl", lines, **made).seeds
    assert (whole.asked, whole.questions, whole.finished, whole.shared) == (3, 3, True, False)  # a failure was asked
    assert (begun.asked, begun.questions, begun.finished) == (1, 3, False)


def test_routing() -> None:
    rows = [  # route, plain right, memory right, returned right
        ("agreed", True, True, True),
        ("agreed", False, False, False),
        ("memory", False, True, True),
        ("memory", True, False, False),
        ("zero_shot", True, False, True),
        ("zero_shot", False, False, False),
        ("memory", True, True, True),
        ("memory", None, True, True),
        ("no_memory", True, None, True),
    ]
    lines = [
        answer("elm_kv", n, right, route=route, candidates=both(plain, memory))
        for n, (route, plain, memory, right) in enumerate(rows)
    ]
    found = method("elm_kv", [*lines, answer("elm_kv", 9, None, route="failed_memory")]).routing
    assert found is not None
    assert (found.memory_right, found.zero_shot_right, found.both_wrong, found.both_right) == (1, 2, 1, 1)
    assert (found.unjudged, found.preferred_memory) == (1, 4)
    assert found.agreed == Share(part=1, whole=2, value=0.5)
    assert found.verifier == Share(part=2, whole=3, value=2 / 3)
    assert found.routes == {"agreed": 2, "memory": 4, "zero_shot": 2, "no_memory": 1, "failed_memory": 1}


def test_routes_that_failed_all_are_told_too() -> None:
    failed = [answer("elm_kv", n, False, route="failed_memory") for n in range(2)]
    found = method("elm_kv", failed).routing
    assert found is not None
    assert found.routes == {"failed_memory": 2}
    assert method("elm_kv", [answer("elm_kv", 0, True, route="no_memory")]).routing is None


def test_retrieval_counts_seeds_apart() -> None:
    found = method("elm_kv", small_stream()).retrieval
    assert found is not None
    assert found.memories == 8
    assert found.retrieved == Share(part=6, whole=8, value=0.75)
    assert found.concentration[0].top_share == pytest.approx(2 / 3)
    assert found.concentration[0].pool == 4
    used = {(use.seed, use.memory_id): (use.uses, use.fixed, use.broken) for use in found.uses}
    assert used[0, "m0"] == (2, 1, 1)
    assert used[1, "m1"] == (1, 0, 0)  # no zero-shot answer beside it


def test_what_cannot_be_retrieved_is_not_counted_as_never_retrieved() -> None:
    """Three of five memories may serve; a candidate that served all the same may have been active then."""
    states = ["active", "active", "candidate", "quarantined", "candidate"]
    lines = [learn("elm_kv", n, state=state) for n, state in enumerate(states)]
    lines += [answer("elm_kv", n, True, memory_id=served) for n, served in enumerate(["m0", "m0", "m0", "m4"])]
    found = method("elm_kv", lines).retrieval
    assert found is not None
    assert (found.memories, found.retrievable, found.concentration[0].pool) == (5, 3, 3)
    assert found.concentration[0].gini == pytest.approx((2 * 1 - 3 * 1 - 1 + 1 + (2 * 3 - 3 - 1) * 3 + 1) / (3 * 4))
    told = method("icl", [learn("icl", 0), learn("icl", 1), answer("icl", 1, True, memory_id="m0")]).retrieval
    assert told is not None
    assert told.retrievable == 2, "texts have no state"


def test_families_and_tasks_stand_apart_and_together() -> None:
    lines = [
        answer(name, n, name == "icl", task=task, source=None, family=f"f{n % 2}")
        for name in ("zero_shot", "icl")
        for task in ("sums", "products")
        for n in range(4)
    ]
    found = task_figures(lines, {})
    assert [task.task for task in found] == ["sums", "products", None]
    assert [task.questions for task in found] == [4, 4, 8]
    assert [one.family for one in found[0].methods[1].families] == ["f0", "f1"]


def test_memories_of_another_set_are_a_method_of_their_own() -> None:
    lines = [
        learn("elm_kv", 0, task="sums", source="sums", tokens=70),
        answer("zero_shot", 0, False, task="products", source=None),
        answer("elm_kv", 0, True, task="products", source="sums"),
    ]
    other = [answer("icl", 0, False, task="products", source=source) for source in ("sums", "words")]
    [task] = task_figures([*lines, *other], {})
    assert [one.label for one in task.methods] == ["zero_shot", "elm_kv from sums", "icl from sums", "icl from words"]
    assert [one.reference for one in task.methods[1].against] == ["icl from sums"]
    studied = answer("elm_kv", 0, True, task="sums", source="sums")
    assert [task.task for task in task_figures([*lines, studied], {})] == ["products", "sums"]  # no sum of both
    assert task.methods[1].learning.tokens == 70
    assert task.methods[1].versus is not None
    assert task.methods[1].versus.fixed == 1


# --- offline ------------------------------------------------------------------------------------------------------

ZERO = [True, True, False, False]
BANK = {"q0": [True, True, True, False], "q1": [False, True, True, True], "q2": [True, False, None, False]}


def small_matrix() -> OfflineFigures:
    lines = [answer("zero_shot", n, right) for n, right in enumerate(ZERO)]
    for learner, row in BANK.items():
        lines += [answer("elm_input", n, right, learner=learner) for n, right in enumerate(row)]
    [found] = offline_figures(lines, items(*(item(n) for n in range(4))))
    return found


def test_each_memory_on_all_questions() -> None:
    found = small_matrix()
    assert [one.learner for one in found.memories] == ["q0", "q1", "q2"]
    assert [one.gain for one in found.memories] == pytest.approx([0.25, 0.25, -1 / 3])
    # without its own question: q0 keeps 1 of 3; q1 has -1 + 1 + 1 of 3; q2's own question failed anyway
    assert [one.elsewhere for one in found.memories] == pytest.approx([1 / 3, 1 / 3, -1 / 3])
    assert [(one.fixed, one.broken, one.failures) for one in found.memories] == [(1, 0, 0), (2, 1, 0), (0, 1, 1)]
    assert [one.oracle.value for one in found.memories] == pytest.approx([0.75, 1.0, 2 / 3])
    assert found.improving == Share(part=2, whole=3, value=2 / 3)
    assert [found.curve[points] for points in (0, 20, 30)] == pytest.approx([2 / 3, 2 / 3, 0])


def test_the_bank_of_a_seed() -> None:
    [seed] = small_matrix().seeds
    assert seed.zero_shot.value == 0.5
    assert seed.bank_oracle.value == 1.0
    assert seed.negative_flips == pytest.approx((0 + 1 / 2 + 1 / 2) / 3)
    assert seed.iou == pytest.approx(1 / 2)  # {q2} and {q2, q3}
    assert seed.matrix["q1"] == {"q0": "broken", "q1": "both_right", "q2": "fixed", "q3": "fixed"}
    assert "q2" not in seed.matrix["q2"]  # a failure is no cell


def test_offline_figures_that_cannot_be_are_said() -> None:
    lines = [answer("zero_shot", 0, True), answer("elm_input", 0, True, learner="q0")]
    [found] = offline_figures(lines, {})
    assert (found.seeds[0].iou, found.seeds[0].note) == (None, "fewer than two memories: no overlap")
    lines += [answer("elm_input", 0, True, learner="q1"), answer("elm_input", 1, None, learner="q2")]
    [found] = offline_figures(lines, {})
    assert found.seeds[0].note == "the two best memories fix nothing: no overlap"
    assert (found.unmeasured, found.memories[-1].gain) == (1, None)
    assert offline_figures([answer("icl", 0, True)], {}) == ()
    assert task_figures(lines, {})[0].methods[0].method == "zero_shot"
