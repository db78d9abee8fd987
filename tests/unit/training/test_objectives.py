"""The other objectives and the labelled approximations: gradients, what they learn, what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from slow_reference import open_model, slow_greedy, slow_logprobs, slow_loss

from elm_agent.errors import InputError, TaskError, TrainingError
from elm_agent.models.decoding import Row
from elm_agent.models.engine import LocalModel
from elm_agent.protocols import Trained
from elm_agent.records import Recipe, StepRecord
from elm_agent.tasks import get_task
from elm_agent.training import GrpoTrainer, RecipeTrainer, grpo, numerics, update
from elm_agent.training.objectives import settled

QUESTION = "What is 2 plus 3?"
SHORT = Recipe(rollouts=4, steps=3, max_new_tokens=6, virtual_tokens=5, learning_rate=0.05)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    model = open_model(tmp_path_factory.mktemp("tiny"))
    yield model
    model.close()


class Letters:
    """The answer is whether the completion begins with a letter; ``same``: every answer is this."""

    name = "letters"

    def __init__(self, same: str | None = None) -> None:
        self.same = same

    def messages(self, question: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}]

    def extract(self, text: str) -> str | None:
        return self.same or ("yes" if text[:1].isascii() and text[:1].isalpha() else "no")

    def equivalent(self, left: str, right: str) -> bool:
        return left == right


def train(model: LocalModel, recipe: Recipe, task: Any = None, **options: Any) -> Trained:
    answers = options.pop("answers", None)
    trainer = GrpoTrainer(model, task or get_task("text"), answers=answers)
    return trainer.train(QUESTION, recipe=recipe, seed=0, **options)


def gradient_of_one_step(
    model: LocalModel, recipe: Recipe, patch: pytest.MonkeyPatch, task: Any, answers: dict[str, str] | None = None
) -> tuple[torch.Tensor, Trained]:
    """What the trainer's only step puts on the memory, before clipping."""
    found: list[torch.Tensor] = []

    def kept(parameters: list[torch.Tensor], *_: Any) -> float:
        (prompt_VE,) = parameters
        assert prompt_VE.grad is not None
        found.append(prompt_VE.grad.clone())
        return float(prompt_VE.grad.norm())

    with patch.context() as inside:
        inside.setattr(grpo, "descend", kept)
        trained = train(model, recipe, task, answers=answers)
    return found[0], trained


def exactness(model: LocalModel) -> float:
    """The RMS norms of the Llama family compute in float32 inside; GPT-2 is float64 throughout."""
    return 1e-10 if model.network.model.config.model_type == "gpt2" else 1e-5


# --- sft_greedy -----------------------------------------------------------------------------------------------


def test_imitation_has_the_gradient_of_the_slow_reference(wide: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(objective="sft_greedy", steps=1, max_new_tokens=7, virtual_tokens=5, temperature=0.3)
    task, network = get_task("text"), wide.network.model
    prompt_ids = list(wide.encode(task.messages(QUESTION)))
    target = slow_greedy(network, prompt_ids, 7, wide.end_ids)
    prompt_VE = numerics.initial_prompt(wide.text_embeddings(QUESTION), 5).requires_grad_(True)
    expected = -sum(slow_logprobs(network, [prompt_VE], prompt_ids, target, 1.0)) / len(target)
    (expected_grad,) = torch.autograd.grad(expected, [prompt_VE])

    gradient, trained = gradient_of_one_step(wide, recipe, monkeypatch, task)
    assert trained.rollouts[0].text == wide.decode_text(target)
    assert float(expected_grad.norm()) > 1e-6
    assert float((gradient - expected_grad).norm() / expected_grad.norm()) < exactness(wide)
    assert trained.curve[0].loss == pytest.approx(float(expected.detach()), rel=exactness(wide))


def test_the_mean_is_over_all_tokens_however_the_targets_are_cut(wide: LocalModel) -> None:
    network, prompt_ids = wide.network, list(wide.encode(get_task("text").messages(QUESTION)))
    targets = [[40, 41, 42, 43, 44, 45, 46], [50, 51], [wide.end_ids[0]]]  # at the limit, short, empty
    prompt_VE = numerics.initial_prompt(wide.text_embeddings(QUESTION), 5).requires_grad_(True)
    slow = [slow_logprobs(network.model, [prompt_VE], prompt_ids, target, 1.0) for target in targets]
    expected = -sum(sum(logprobs) for logprobs in slow) / 10
    (expected_grad,) = torch.autograd.grad(expected, [prompt_VE])
    prefix, _ = network.read([torch.cat([prompt_VE, network.embed(prompt_ids[:-1])])])
    rows = [Row(max_new_tokens=7, tokens=target) for target in targets]
    pull = update.imitate(network, prefix, prompt_ids[-1], rows, token_budget=8)
    assert prompt_VE.grad is not None
    assert float((prompt_VE.grad - expected_grad).norm() / expected_grad.norm()) < exactness(wide)
    assert pull == update.Pull(loss=pytest.approx(float(expected.detach()), rel=exactness(wide)))


def test_imitation_makes_the_greedy_completion_likelier(model: LocalModel) -> None:
    trained = train(model, replace(SHORT, objective="sft_greedy", steps=30))
    assert trained.curve[-1].loss < trained.curve[0].loss - 1.0  # nats a token
    assert {rollout.text for rollout in trained.rollouts} == {trained.rollouts[0].text}
    assert len(trained.rollouts) == len(trained.curve) == 30
    assert {(record.vote_share, record.kl, record.clip_fraction) for record in trained.curve} == {(1.0, 0.0, 0.0)}


@pytest.mark.parametrize(
    "senseless", [{"beta": 0.1}, {"min_vote_share": 0.5}, {"skip_equal_rewards": True}, {"stop_when_settled": 2}]
)
def test_imitation_refuses_what_needs_a_group(model: LocalModel, senseless: dict[str, Any]) -> None:
    (name,) = senseless
    with pytest.raises(InputError, match=f"'sft_greedy' has one completion, no votes and no KL term; {name} is"):
        train(model, replace(SHORT, objective="sft_greedy", **senseless))


# --- grpo_ground_truth ----------------------------------------------------------------------------------------


def test_rewards_by_a_given_answer_have_the_gradient_of_the_slow_reference(
    wide: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(SHORT, objective="grpo_ground_truth", steps=1, rollouts=3, temperature=0.8, beta=0.3)
    completions = [[40, 41, 42, 43, 44, 45], [50, 51], [60, 61, 62]]
    rows = [Row(max_new_tokens=6, tokens=tokens) for tokens in completions]

    class Second(Letters):
        """Two of three agree, and the third is right."""

        def extract(self, text: str) -> str | None:
            return "5" if text == wide.decode_text(completions[1]) else "6"

    prompt_ids = list(wide.encode(Second().messages(QUESTION)))
    prompt_VE = numerics.initial_prompt(wide.text_embeddings(QUESTION), 5).requires_grad_(True)
    network, rewards = wide.network.model, [0.0, 1.0, 0.0]
    expected = slow_loss(network, prompt_VE, prompt_VE.detach(), prompt_ids, completions, rewards, recipe)
    (expected_grad,) = torch.autograd.grad(expected, [prompt_VE])

    monkeypatch.setattr(grpo, "sample_group", lambda *_arguments, **_more: rows)
    gradient, trained = gradient_of_one_step(wide, recipe, monkeypatch, Second(), {QUESTION: "5"})
    assert [rollout.reward for rollout in trained.rollouts] == rewards
    assert (trained.final.majority_answer, trained.final.vote_share) == ("6", pytest.approx(2 / 3))
    assert float((gradient - expected_grad).norm() / expected_grad.norm()) < exactness(wide)
    assert trained.final.loss == pytest.approx(float(expected.detach()), rel=exactness(wide))


def test_the_right_answer_is_learnt_against_the_majority(model: LocalModel) -> None:
    recipe = Recipe(
        objective="grpo_ground_truth", rollouts=16, steps=25, max_new_tokens=2, virtual_tokens=4, learning_rate=0.1
    )
    curve = train(model, recipe, Letters(), answers={QUESTION: "yes"}).curve
    first = sum(record.reward_mean for record in curve[:3]) / 3
    last = sum(record.reward_mean for record in curve[-6:]) / 6
    assert first < 0.5
    assert curve[0].majority_answer == "no"
    assert last > first + 0.2


def test_a_comparison_with_the_answer_that_fails_is_no_reward(model: LocalModel) -> None:
    class Fragile(Letters):
        def __init__(self, failing: set[int]) -> None:
            super().__init__("same")
            self.failing, self.calls = failing, 0

        def equivalent(self, left: str, right: str) -> bool:
            self.calls += 1
            if self.calls in self.failing:
                raise TaskError("the checker broke")
            return bool(left and right)

    recipe = replace(SHORT, objective="grpo_ground_truth", steps=1)
    trained = train(model, recipe, Fragile({2}), answers={QUESTION: "5"})
    assert [rollout.reward for rollout in trained.rollouts] == [1.0, None, 1.0, 1.0]
    assert [rollout.failure for rollout in trained.rollouts] == [None, "the checker broke", None, None]
    with pytest.raises(TrainingError, match="step 1: no answer of 4 could be compared: the checker broke"):
        train(model, recipe, Fragile({1, 2, 3, 4}), answers={QUESTION: "5"})


def test_without_the_answer_it_is_refused_before_the_first_step(model: LocalModel) -> None:
    recipe, told = replace(SHORT, objective="grpo_ground_truth"), []
    for trainer in (GrpoTrainer(model, Letters(), answers={"another": "5"}), RecipeTrainer(model, Letters())):
        with pytest.raises(InputError, match=r"needs the answer of 'What is 2 plus 3\?'.*an agent has none"):
            trainer.train(QUESTION, recipe=recipe, seed=0, observe=lambda name, _detail: told.append(name))
    assert told == []


def test_an_unknown_objective_is_refused_by_name(model: LocalModel) -> None:
    with pytest.raises(InputError, match="objective is 'dpo'; this trainer knows 'grpo_majority', "):
        train(model, replace(SHORT, objective="dpo"))


# --- labelled approximations ----------------------------------------------------------------------------------


class MixedOnce(Letters):
    """The first group disagrees, all later ones agree."""

    def __init__(self, rollouts: int) -> None:
        super().__init__()
        self.rollouts, self.calls = rollouts, 0

    def extract(self, text: str) -> str | None:
        self.calls += 1
        return str(self.calls % 2) if self.calls <= self.rollouts else "same" + text[:0]


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_a_step_of_equal_rewards_is_skipped_with_its_momentum_and_kl(model: LocalModel, beta: float) -> None:
    def prompt(steps: int, *, skip: bool) -> torch.Tensor:
        recipe = replace(SHORT, steps=steps, beta=beta, skip_equal_rewards=skip)
        return train(model, recipe, MixedOnce(4)).prompt.prompt_VE

    assert torch.equal(prompt(1, skip=True), prompt(1, skip=False))
    assert torch.equal(prompt(1, skip=True), prompt(3, skip=True))
    assert not torch.equal(prompt(1, skip=False), prompt(3, skip=False))  # Adam moves on without a gradient
    skipped = train(model, replace(SHORT, beta=beta, skip_equal_rewards=True), MixedOnce(4)).curve
    assert [record.grad_norm > 0 for record in skipped] == [True, False, False]
    assert [(record.loss, record.kl, record.vote_share) for record in skipped[1:]] == [(0.0, 0.0, 1.0)] * 2


def test_training_stops_when_the_vote_is_settled(model: LocalModel) -> None:
    recipe = replace(SHORT, steps=6, stop_when_settled=2)
    assert len(train(model, recipe, MixedOnce(4)).curve) == 3
    assert len(train(model, replace(recipe, stop_when_settled=0), MixedOnce(4)).curve) == 6


@pytest.mark.parametrize(
    ("shares", "steps", "share", "expected"),
    [
        ([1.0, 1.0], 2, 1.0, True),
        ([1.0], 2, 1.0, False),
        ([1.0, 0.9, 1.0], 2, 1.0, False),
        ([0.1, 0.9, 1.0], 2, 0.9, True),
        ([1.0, 1.0], 0, 1.0, False),
    ],
)
def test_settled_means_the_last_steps_in_a_row(shares: list[float], steps: int, share: float, expected: bool) -> None:
    curve = [step_record(step, value) for step, value in enumerate(shares)]
    assert settled(curve, Recipe(stop_when_settled=steps, settled_share=share)) is expected


def step_record(step: int, vote_share: float) -> StepRecord:
    numbers = ("reward_mean", "loss", "kl", "grad_norm", "clip_fraction", "finished_share")
    seconds = {"seconds_rollout": 0.25, "seconds_update": 0.5}
    return StepRecord(
        step=step, majority_answer="5", vote_share=vote_share, tokens=1, **dict.fromkeys(numbers, 0.0), **seconds
    )


def test_the_recipe_says_where_it_leaves_the_paper_and_old_ones_are_what_they_were() -> None:
    younger = ("trainer", "skip_equal_rewards", "stop_when_settled", "settled_share")
    old = {name: value for name, value in asdict(Recipe()).items() if name not in younger}
    assert Recipe(**old) == Recipe()
    assert Recipe().id == "sha256:6ef1deda53b9ef53150965edc00c8e43a7094e5cadd8838b276274e3bd00032a"
    assert Recipe().approximations == ()
    approximate = Recipe(skip_equal_rewards=True, stop_when_settled=3)
    assert approximate.approximations == ("skip_equal_rewards", "stop_when_settled")
    ids = {Recipe(**{name: value}).id for name, value in approximations().items()}
    assert len(ids | {Recipe().id}) == 5


def approximations() -> dict[str, Any]:
    return {"trainer": "trl", "skip_equal_rewards": True, "stop_when_settled": 3, "settled_share": 0.9}


def test_what_was_trained_is_counted(model: LocalModel) -> None:
    trained = train(model, SHORT)
    assert (trained.parameters, trained.nbytes) == (5 * 32, 4 * 5 * 32)
    seconds = [record.seconds_rollout + record.seconds_update for record in trained.curve]
    assert trained.seconds_per_step == pytest.approx(sum(seconds) / 3)
    assert 0 < sum(seconds) <= trained.seconds
