"""What each baseline puts before the model, what it keeps, and when: on a scripted model that shows its prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from elm_agent.bench.evidence.contract import NOTHING, Item, Learned, Method, Outcome, Workplace
from elm_agent.bench.evidence.methods import METHODS, open_method
from elm_agent.bench.evidence.methods.past import PastQuestions
from elm_agent.errors import InputError, TaskError, VerificationError
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Generation, KeyKind, digest_of
from elm_agent.settings import Settings
from elm_agent.tasks import MathTask
from elm_agent.testing.doubles import FakeModel, key_of

TEXT_MEMORIES = ["icl", "reasoning_bank", "dynamic_cheatsheet", "exp_rag"]
Open = Callable[..., Method]

TWO = Item(id="two", question="What is one plus one?", answer="", family="sums")
THREE = Item(id="three", question="What is one plus two?", answer="", family="sums")
AGAIN = Item(id="again", question="What is  one plus one?\n", answer="", family="sums")  # equal to TWO but for spaces
RIVER = Item(id="river", question="How long is the river Danube?", answer="", family="rivers")


class Scripted(FakeModel):
    """Replies by the last line's first words; every prompt is kept as text."""

    def __init__(self, **options: object) -> None:
        super().__init__(reply=lambda prompt, _memory: self.say(prompt), **options)  # type: ignore[arg-type]
        self.check = "yes"
        self.note = "Count upwards."
        self.sure: Iterator[float] | None = None  # self-certainty of the next rows
        self.generated: list[Generation] = []

    def say(self, prompt: str) -> str:
        if "Reply with one word" in prompt:
            return self.check
        if "Write the" in prompt or "Write in" in prompt:
            return self.note
        return f"It is \\boxed{{{len(prompt)}}}."

    def _row(self, request: GenerationRequest) -> Generation:
        generation = super()._row(request)
        if self.sure is not None:
            generation = replace(generation, self_certainty=next(self.sure))
        self.generated.append(generation)
        return generation

    @property
    def prompts(self) -> list[str]:
        return [bytes(row.prompt_ids).decode() for batch in self.batches for row in batch]


@pytest.fixture
def model() -> Scripted:
    return Scripted()


@pytest.fixture
def open_one(tmp_path: Path, model: Scripted) -> Open:
    def open_one(name: str, *, seed: int = 0, **settings: object) -> Method:
        place = Workplace(
            model=model,
            task=MathTask(instruction=" Box it."),
            settings=Settings(**{"max_new_tokens": 64, **settings}),
            seed=seed,
            folder=tmp_path,
            shared=tmp_path,
            observe=lambda _name, _values: None,
        )
        return open_method(name, place)

    return open_one


def learn(method: Method, *items: Item) -> list[tuple[Outcome, Learned]]:
    done = []
    for item in items:
        outcome = method.answer(item)
        done.append((outcome, method.learn(item, outcome)))
    return done


# --- what is put before the model -------------------------------------------------------------------------------


def test_icl_shows_the_nearest_question_and_what_was_answered(open_one: Open, model: Scripted) -> None:
    method = open_one("icl")
    (first, _), _ = learn(method, TWO, RIVER)
    outcome = method.answer(THREE)
    assert model.prompts[-1] == f"{TWO.question} Box it.\n{first.text}\n{THREE.question} Box it."
    assert (outcome.memory_id, outcome.memory_item) == ("icl/two", "two")
    assert outcome.similarity == pytest.approx(
        float(key_of(TWO.question, KeyKind.INPUT) @ key_of(THREE.question, KeyKind.INPUT))
    )
    assert [one.role for one in outcome.candidates] == ["memory"]
    assert outcome.candidates[0].memory_id == "icl/two"


@pytest.mark.parametrize(
    ("check", "asked", "told"),
    [
        ("Yes, it is.", "judged correct:", "judged correct"),
        ("It is incorrect.", "judged wrong:", "judged wrong"),
        ("Well.", "judged wrong:", "not judged"),
    ],
)
def test_a_reasoning_bank_checks_refines_and_retrieves(
    open_one: Open, model: Scripted, check: str, asked: str, told: str
) -> None:
    model.check = check
    method = open_one("reasoning_bank")
    ((first, learned),) = learn(method, TWO)
    solve, checked, refined = model.prompts
    assert solve == f"{TWO.question} Box it."
    assert TWO.question in checked
    assert first.text in checked
    assert asked in refined
    assert first.text in refined
    assert [one.role for one in learned.texts] == ["critique", "strategy"]
    assert (learned.reason, learned.kept["strategy"]) == (told, "Count upwards.")
    method.answer(THREE)
    assert "Count upwards." in model.prompts[-1]
    assert first.text not in model.prompts[-1]
    assert model.prompts[-1].endswith(f"{THREE.question} Box it.")


def test_an_empty_strategy_is_not_kept(open_one: Open, model: Scripted) -> None:
    model.note = " "
    method = open_one("reasoning_bank")
    ((_, learned),) = learn(method, TWO)
    assert (learned.memory_id, learned.reason) == (None, "the strategy is empty")
    method.restore(TWO, learned)
    assert method.answer(THREE).route == "no_memory"


def test_exp_rag_shows_experiences_with_feedback_the_nearest_last(open_one: Open, model: Scripted) -> None:
    method = open_one("exp_rag:2")
    others = Item(id="x", question="Name the capital of Peru", answer="", family="f")
    learn(method, others, TWO, RIVER)
    model.check = "no"
    learn(method, Item(id="y", question="What is one plus three?", answer="", family="sums"))
    outcome = method.answer(THREE)
    shown = model.prompts[-1]
    assert outcome.detail == {"retrieved": [outcome.memory_item, {"two": "y", "y": "two"}[str(outcome.memory_item)]]}
    assert "Feedback: judged correct" in shown
    assert "Feedback: judged wrong" in shown
    nearest = TWO.question if outcome.memory_item == "two" else "What is one plus three?"
    assert shown.rindex("Problem: ") == shown.rindex(f"Problem: {nearest}")
    assert "Danube" not in shown
    assert shown.endswith(f"{THREE.question} Box it.")


def test_a_cheatsheet_is_rewritten_from_the_old_one(open_one: Open, model: Scripted) -> None:
    method = open_one("dynamic_cheatsheet")
    model.note = "Here:\n<cheatsheet>\nCount.\n</cheatsheet> Done."
    learn(method, TWO)
    assert "(empty)" in model.prompts[-1]
    model.note = "Count twice."  # without tags: all of it
    ((second, learned),) = learn(method, RIVER)
    answered, curated = model.prompts[-2:]
    assert "Count.\n" in answered
    assert "Done." not in answered
    assert second.text in curated
    assert "Count.\n" in curated
    assert learned.kept == {"sheet": "Count twice."}
    model.note = "<cheatsheet> </cheatsheet>"
    ((_, nothing),) = learn(method, THREE)
    assert nothing.memory_id is None
    assert nothing.reason is not None
    outcome = method.answer(Item(id="z", question="What is left?", answer="", family="f"))
    assert "Count twice." in model.prompts[-1]
    assert outcome.memory_id == "dynamic_cheatsheet/river"


# --- when, and of what --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXT_MEMORIES)
def test_nothing_is_learned_by_answering(open_one: Open, model: Scripted, name: str) -> None:
    method = open_one(name)
    first, second = method.answer(TWO), method.answer(THREE)
    assert [first.route, second.route] == ["no_memory", "no_memory"]
    assert [one.role for one in second.candidates] == ["zero_shot"]
    assert model.prompts == [f"{TWO.question} Box it.", f"{THREE.question} Box it."]
    method.learn(TWO, first)
    assert method.answer(THREE).memory_id == f"{name}/two"


@pytest.mark.parametrize("name", TEXT_MEMORIES)
def test_a_question_never_sees_itself_nor_its_twin(open_one: Open, model: Scripted, name: str) -> None:
    method = open_one(name)
    learn(method, TWO)
    for same in (TWO, AGAIN):
        assert method.answer(same).memory_id is None
        assert model.prompts[-1].strip() == f"{same.question} Box it.".strip()
    learn(method, RIVER)
    for same in (TWO, AGAIN):
        outcome = method.answer(same)
        assert "plus one?" not in model.prompts[-1].removesuffix(f"{same.question} Box it.")
        # A sheet cannot forget: it is taken as it was before the question, which is empty here.
        assert outcome.memory_item == (None if name == "dynamic_cheatsheet" else "river")


@pytest.mark.parametrize("name", TEXT_MEMORIES)
def test_a_restored_method_answers_like_the_one_that_learned(open_one: Open, model: Scripted, name: str) -> None:
    method, later = open_one(name), open_one(name)
    for item, (_, learned) in zip((TWO, RIVER), learn(method, TWO, RIVER), strict=True):
        later.restore(item, learned)
    assert method.answer(THREE) == later.answer(THREE)
    assert model.prompts[-2] == model.prompts[-1]


@pytest.mark.parametrize("name", TEXT_MEMORIES)
def test_learning_without_an_answer_solves_first_and_pays_for_it(open_one: Open, name: str) -> None:
    with_answer, without = open_one(name), open_one(name)
    ((outcome, told),) = learn(with_answer, TWO)
    alone = without.learn(TWO, None)
    assert alone.kept == told.kept
    assert alone.tokens == told.tokens + outcome.tokens
    assert alone.prompt_tokens == told.prompt_tokens + outcome.prompt_tokens


def test_equally_near_questions_are_taken_in_their_order() -> None:
    past: PastQuestions[str] = PastQuestions()
    key = key_of("a", KeyKind.INPUT)
    for name in ("b", "a", "c"):
        past.add(Item(id=name, question=name, answer="", family="f"), key, name)
    asked = Item(id="d", question="d", answer="", family="f")
    assert [one.past.kept for one in past.nearest(asked, key, 2)] == ["b", "a"]


# --- tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TEXT_MEMORIES, "self_consistency:3", "verifier_at_2"])
def test_every_token_is_counted_once_with_its_phase(open_one: Open, model: Scripted, name: str) -> None:
    method = open_one(name, verification={"verifier": "majority", "samples": 3})
    model.reply = lambda prompt, _memory: number_of(prompt, len(model.prompts))
    spent: list[tuple[int, int]] = []
    for item in (TWO, RIVER, THREE):
        for call in (lambda: method.answer(item), lambda: method.learn(item, None)):  # noqa: B023
            before = totals(model)
            done = call()
            after = totals(model)
            assert (done.tokens, done.prompt_tokens) == (after[0] - before[0], after[1] - before[1])
            spent.append((done.tokens, done.prompt_tokens))
    assert all(answer > (0, 0) for answer in spent[::2])
    assert all((learned > (0, 0)) == method.learns for learned in spent[1::2])


def number_of(prompt: str, call: int) -> str:
    """Another answer at every call."""
    return f"\\boxed{{{call}}} {digest_of(prompt)[:12]}"


def totals(model: Scripted) -> tuple[int, int]:
    rows = [row for batch in model.batches for row in batch]
    reads = sum(len(row.prompt_ids) for row in rows)
    return sum(len(one.token_ids) for one in model.generated), reads


# --- samples --------------------------------------------------------------------------------------------------------


def test_self_consistency_spends_what_elm_may_and_no_more(open_one: Open, model: Scripted) -> None:
    learning = {"steps": 3, "rollouts": 4, "max_new_tokens": 10}
    method = open_one("self_consistency", max_new_tokens=20, learning=learning)
    model.say = lambda _prompt: "\\boxed{7}"  # type: ignore[method-assign]
    outcome = method.answer(TWO)
    budget = 2 * 20 + 3 * 4 * 10
    assert budget - 20 < outcome.tokens <= budget
    assert outcome.tokens == 9 * len(outcome.candidates)
    assert outcome.detail == {"samples": len(outcome.candidates), "vote_share": 1.0}
    seeds = [row.seed for batch in model.batches for row in batch]
    assert len(set(seeds)) == len(seeds) == len(outcome.candidates)
    assert {row.temperature for batch in model.batches for row in batch} == {0.5}


def test_the_majority_answers_and_a_tie_goes_to_the_first(open_one: Open, model: Scripted) -> None:
    replies = iter(["no idea", "\\boxed{2}", "\\boxed{3}", "\\boxed{3.0} again", "\\boxed{2.0}"])
    model.say = lambda _prompt: next(replies)  # type: ignore[method-assign]
    outcome = open_one("self_consistency:5").answer(TWO)
    assert (outcome.answer, outcome.text, outcome.detail["vote_share"]) == ("2", "\\boxed{2}", 0.4)
    assert [one.answer for one in outcome.candidates] == [None, "2", "3", "3.0", "2.0"]
    model.say = lambda _prompt: "no idea"  # type: ignore[method-assign]
    nobody = open_one("self_consistency:2").answer(TWO)
    assert (nobody.answer, nobody.text, nobody.detail["vote_share"]) == (None, "no idea", 0.0)


def test_samples_depend_on_seed_method_and_question_alone(open_one: Open, model: Scripted) -> None:
    def seeds(name: str, item: Item, seed: int = 0) -> list[int]:
        model.batches.clear()
        open_one(name, seed=seed).answer(item)
        return [row.seed for batch in model.batches for row in batch]

    first = seeds("self_consistency:4", TWO)
    assert seeds("self_consistency:4", TWO) == first
    assert seeds("self_consistency:2", TWO) == first[:2]
    others = [
        seeds("self_consistency:4", TWO, seed=1),
        seeds("self_consistency:4", THREE),
        seeds("verifier_at_2", TWO),
    ]
    assert not set(first) & {seed for other in others for seed in other}


def test_an_answer_that_cannot_be_compared_is_a_failure(open_one: Open, model: Scripted) -> None:
    method = open_one("self_consistency:2")

    def refuse(_left: str, _right: str) -> bool:
        raise TaskError("too slow")

    method.task.equivalent = refuse  # type: ignore[attr-defined]
    replies = iter(["\\boxed{x}", "\\boxed{y}"])
    model.say = lambda _prompt: next(replies)  # type: ignore[method-assign]
    with pytest.raises(TaskError, match="1 votes could not be compared: too slow"):
        method.answer(TWO)


# --- the verifier -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("certainties", "expected"), [((0.1, 0.2), "2"), ((0.2, 0.1), "1"), ((0.2, 0.2), "1")])
def test_a_verifier_chooses_between_two_samples(
    open_one: Open, model: Scripted, certainties: tuple[float, float], expected: str
) -> None:
    model.sure = iter(certainties)
    replies = iter(["\\boxed{1}", "\\boxed{2}"])
    model.say = lambda _prompt: next(replies)  # type: ignore[method-assign]
    outcome = open_one("verifier_at_2", verification={"verifier": "self_certainty"}).answer(TWO)
    assert outcome.answer == expected
    assert [one.answer for one in outcome.candidates] == ["1", "2"]
    assert [one.score for one in outcome.candidates] == list(certainties)
    assert outcome.detail == {"agreed": False, "chosen": int(expected) - 1}
    assert outcome.route is None


def test_samples_that_agree_need_no_verifier(open_one: Open, model: Scripted) -> None:
    model.say = lambda _prompt: "\\boxed{1}"  # type: ignore[method-assign]
    outcome = open_one("verifier_at_2").answer(TWO)
    assert outcome.detail == {"agreed": True, "chosen": 0}
    assert [one.score for one in outcome.candidates] == [None, None]


def test_a_verifier_that_fails_is_a_failure(open_one: Open, model: Scripted) -> None:
    model.sure = iter((0.5, float("nan")))
    replies = iter(["\\boxed{1}", "\\boxed{2}"])
    model.say = lambda _prompt: next(replies)  # type: ignore[method-assign]
    method = open_one("verifier_at_2", verification={"verifier": "self_certainty"})
    with pytest.raises(VerificationError, match="could not be judged"):
        method.answer(TWO)


# --- names --------------------------------------------------------------------------------------------------------


def test_the_names_are_those_of_the_plan() -> None:
    expected = {"self_consistency", "verifier_at_2", "lag", "lag_tts", *TEXT_MEMORIES}
    assert expected <= set(METHODS)


@pytest.mark.parametrize("name", ["self_consistency:", "self_consistency:0", "self_consistency:two", "exp_rag:-1"])
def test_an_option_that_is_no_number_is_refused(open_one: Open, name: str) -> None:
    with pytest.raises(InputError, match=r"expected .* with a number N from 1"):
        open_one(name)


def test_an_option_that_means_nothing_is_refused(open_one: Open) -> None:
    with pytest.raises(InputError, match="method 'icl' has no options; got 'icl:5'"):
        open_one("icl:5")


def test_what_does_not_learn_says_so(open_one: Open) -> None:
    method = open_one("self_consistency:1")
    assert method.learn(TWO, None) is NOTHING
    method.restore(TWO, NOTHING)
    method.close()
    method.close()


def test_states_are_kept_of_a_local_model_alone(open_one: Open) -> None:
    with pytest.raises(InputError, match="'lag' needs a LocalModel"):
        open_one("lag")


def test_a_prompt_that_does_not_fit_is_no_answer(open_one: Open, model: Scripted) -> None:
    method = open_one("icl")
    learn(method, TWO)
    model._context_length = 60
    with pytest.raises(InputError, match="60"):
        method.answer(THREE)
