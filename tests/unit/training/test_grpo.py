"""The trainer on a real tiny model: gradients against a slow reference, trajectories, failures."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from slow_reference import open_model, slow_loss

from elm_agent.errors import InputError, JobCancelled, TaskError, TrainingError
from elm_agent.models.decoding import Row
from elm_agent.models.engine import LocalModel
from elm_agent.records import Recipe
from elm_agent.tasks import get_task
from elm_agent.training import GrpoTrainer, grpo, numerics, update

QUESTION = "What is 2 plus 3?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    model = open_model(tmp_path_factory.mktemp("tiny"))
    yield model
    model.close()


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize(("kl_reference", "token_budget"), [("base", 1024), ("initial", 8)])
def test_a_step_has_the_gradient_of_the_slow_reference(
    wide: LocalModel, beta: float, kl_reference: str, token_budget: int
) -> None:
    recipe = Recipe(rollouts=3, max_new_tokens=7, temperature=0.8, beta=beta, kl_reference=kl_reference)
    network, prompt_ids = wide.network, list(wide.encode(get_task("number").messages(QUESTION)))
    initial_VE = numerics.initial_prompt(wide.text_embeddings(QUESTION), 5)
    torch.manual_seed(1)
    prompt_VE = (initial_VE + 0.1 * torch.randn_like(initial_VE)).requires_grad_(True)
    completions = [[40, 41, 42, 43, 44, 45, 46], [50, 51], [60, 61, 62, 63]]
    rewards = [1.0, 0.0, 1.0]

    expected = slow_loss(network.model, prompt_VE, initial_VE, prompt_ids, completions, rewards, recipe)
    (expected_grad,) = torch.autograd.grad(expected, [prompt_VE])

    text_TE = network.embed(prompt_ids[:-1])
    prefix, _ = network.read([torch.cat([prompt_VE, text_TE])])
    reference = None
    if beta:
        start = [text_TE] if kl_reference == "base" else [initial_VE, text_TE]
        with torch.no_grad():
            reference, _ = network.read([torch.cat(start)])
    rows = [Row(max_new_tokens=7, tokens=tokens) for tokens in completions]
    advantages_G = numerics.group_advantages(rewards)
    pull = update.backward(
        network, prefix, reference, prompt_ids[-1], rows, advantages_G, recipe, token_budget=token_budget
    )

    assert prompt_VE.grad is not None
    assert float(expected_grad.norm()) > 1e-6
    # The RMS norms of the Llama family compute in float32 inside; GPT-2 is float64 throughout.
    exactness = 1e-10 if network.model.config.model_type == "gpt2" else 1e-5
    assert float((prompt_VE.grad - expected_grad).norm() / expected_grad.norm()) < exactness
    assert pull.loss == pytest.approx(float(expected.detach()), rel=exactness, abs=1e-9)
    assert pull.clip_fraction == 0.0
    assert (pull.kl > 0) == (beta > 0)


def test_training_keeps_the_whole_trajectory_and_changes_only_the_memory(model: LocalModel) -> None:
    before = {name: value.clone() for name, value in model.network.model.state_dict().items()}
    recipe = Recipe(rollouts=4, steps=3, max_new_tokens=6, virtual_tokens=5, learning_rate=0.05, beta=0.01)
    seen: list[tuple[str, dict[str, Any]]] = []
    trained = GrpoTrainer(model, get_task("text")).train(
        QUESTION, recipe=recipe, seed=3, observe=lambda name, detail: seen.append((name, detail))
    )
    assert [record.step for record in trained.curve] == [0, 1, 2]
    assert len(trained.rollouts) == 12
    assert len({rollout.seed for rollout in trained.rollouts}) == 12
    assert trained.prompt.prompt_VE.shape == (5, 32)
    assert trained.keys.input.shape == (32,)
    assert trained.keys.kv is not None
    assert [name for name, _ in seen] == ["train.step"] * 3
    assert seen[0][1]["vote_share"] == trained.curve[0].vote_share
    for record in trained.curve:
        group = [rollout for rollout in trained.rollouts if rollout.step == record.step]
        assert record.tokens == sum(rollout.tokens for rollout in group)
        assert record.reward_mean == pytest.approx(sum(r.reward or 0.0 for r in group) / 4)
        assert record.reward_mean == pytest.approx(record.vote_share)
        assert record.kl > 0
    initial_VE = numerics.initial_prompt(model.text_embeddings(QUESTION), 5)
    assert not torch.equal(trained.prompt.prompt_VE, initial_VE)
    for name, value in model.network.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_same_seed_gives_the_same_memory_and_another_seed_another(model: LocalModel) -> None:
    trainer = GrpoTrainer(model, get_task("text"))
    recipe = Recipe(rollouts=3, steps=2, max_new_tokens=5, virtual_tokens=4, learning_rate=0.05)
    one, same, other = (trainer.train(QUESTION, recipe=recipe, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.prompt.prompt_VE, same.prompt.prompt_VE)
    assert [r.text for r in one.rollouts] == [r.text for r in same.rollouts]
    assert [r.text for r in one.rollouts] != [r.text for r in other.rollouts]


class OneToken:
    """A task whose answer is whether the completion begins with an 'a': learnable by any model."""

    name = "one"

    def messages(self, question: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}]

    def extract(self, text: str) -> str | None:
        return "yes" if text[:1] in "abcdefghijklmnopqrstuvwxyz" else None

    def equivalent(self, left: str, right: str) -> bool:
        return left == right


def test_reward_rises_on_a_learnable_task(model: LocalModel) -> None:
    recipe = Recipe(rollouts=16, steps=25, max_new_tokens=2, virtual_tokens=4, learning_rate=0.1)
    curve = GrpoTrainer(model, OneToken()).train(QUESTION, recipe=recipe, seed=0).curve
    first = sum(record.vote_share for record in curve[:4]) / 4
    last = sum(record.vote_share for record in curve[-8:]) / 8
    assert last > first + 0.1


def test_equal_rewards_without_kl_leave_the_memory_where_it_is(model: LocalModel) -> None:
    class Constant(OneToken):
        def extract(self, text: str) -> str | None:
            return "same" + text[:0]

    recipe = Recipe(rollouts=3, steps=2, max_new_tokens=4, virtual_tokens=4, learning_rate=0.1)
    trained = GrpoTrainer(model, Constant()).train(QUESTION, recipe=recipe, seed=0)
    assert [record.vote_share for record in trained.curve] == [1.0, 1.0]
    assert [record.grad_norm for record in trained.curve] == [0.0, 0.0]
    assert torch.equal(trained.prompt.prompt_VE, numerics.initial_prompt(model.text_embeddings(QUESTION), 4))


@pytest.mark.parametrize(("said", "failure"), [(["the checker broke"], "the checker broke"), ([], "TaskError")])
def test_a_reward_that_fails_is_recorded_and_never_counts_as_zero(
    model: LocalModel, said: list[str], failure: str
) -> None:
    class Fragile(OneToken):
        calls = 0

        def extract(self, text: str) -> str | None:
            self.calls += 1
            if self.calls == 2:
                raise TaskError(*said)
            return "same" + text[:0]

    recipe = Recipe(rollouts=4, steps=1, max_new_tokens=4, virtual_tokens=4)
    trained = GrpoTrainer(model, Fragile()).train(QUESTION, recipe=recipe, seed=0)
    assert [rollout.reward for rollout in trained.rollouts] == [1.0, None, 1.0, 1.0]
    assert trained.rollouts[1].failure == failure
    assert trained.final.reward_mean == 1.0


def test_a_group_without_any_reward_is_a_failure_and_not_a_mean_of_zero(model: LocalModel) -> None:
    class Broken(OneToken):
        def extract(self, text: str) -> str | None:
            raise TaskError(f"the checker broke{text[:0]}")

    recipe = Recipe(rollouts=4, steps=1, max_new_tokens=4, virtual_tokens=4)
    with pytest.raises(TrainingError, match="step 1: no answer of 4 could be extracted: the checker broke"):
        GrpoTrainer(model, Broken()).train(QUESTION, recipe=recipe, seed=0)


def test_cancellation_is_seen_between_steps(model: LocalModel) -> None:
    steps: list[str] = []
    recipe = Recipe(rollouts=2, steps=5, max_new_tokens=3, virtual_tokens=2)
    with pytest.raises(JobCancelled, match="before step 3 of 5"):
        GrpoTrainer(model, get_task("text")).train(
            QUESTION,
            recipe=recipe,
            seed=0,
            observe=lambda name, _detail: steps.append(name),
            cancelled=lambda: len(steps) == 2,
        )


def test_cancellation_is_seen_before_an_update_that_waited(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, asked = grpo.judge, threading.Event()

    def judged(*given: Any, **named: Any) -> Any:  # the last thing before an update
        asked.set()
        return judge(*given, **named)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("an update began")

    monkeypatch.setattr(grpo, "judge", judged)
    monkeypatch.setattr(grpo, "_pull", never)
    recipe = Recipe(rollouts=2, steps=2, max_new_tokens=3, virtual_tokens=2)
    with pytest.raises(JobCancelled, match="before an update"):
        GrpoTrainer(model, get_task("text")).train(QUESTION, recipe=recipe, seed=0, cancelled=asked.is_set)


def test_a_loss_that_is_not_finite_ends_the_training_with_a_sentence(tmp_path: Path) -> None:
    model = open_model(tmp_path, architecture="gpt2")  # whose LayerNorm overflows, where an RMS norm gives zeros
    recipe = Recipe(rollouts=4, steps=3, max_new_tokens=4, virtual_tokens=3, learning_rate=1e30, beta=0.1)
    with pytest.raises(TrainingError, match="lower the learning rate"):
        GrpoTrainer(model, get_task("text")).train(QUESTION, recipe=recipe, seed=0)
    model.close()


def test_an_unknown_parameterisation_is_refused_by_name(model: LocalModel) -> None:
    with pytest.raises(InputError, match="parameterisation is 'adapter'"):
        GrpoTrainer(model, get_task("text")).train(
            QUESTION, recipe=replace(Recipe(), parameterisation="adapter"), seed=0
        )


def test_a_recipe_with_other_keys_than_the_model_makes_is_refused(model: LocalModel) -> None:
    with pytest.raises(InputError, match="kv_heads is 'keep'"):
        GrpoTrainer(model, get_task("text")).train(QUESTION, recipe=Recipe(kv_heads="keep"), seed=0)


def test_rollouts_that_would_leave_the_context_are_refused_before_the_first_step(model: LocalModel) -> None:
    told: list[str] = []
    with pytest.raises(InputError, match=r"context of 1024: lower `learning.max_new_tokens`"):
        GrpoTrainer(model, get_task("text")).train(
            QUESTION, recipe=Recipe(max_new_tokens=1000), seed=0, observe=lambda name, _detail: told.append(name)
        )
    assert told == []


def test_rollout_seeds_depend_on_memory_step_and_index_only() -> None:
    seeds = {grpo.rollout_seed(m, s, i) for m in range(4) for s in range(4) for i in range(4)}
    assert len(seeds) == 64
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert grpo.rollout_seed(1, 2, 3) == grpo.rollout_seed(1, 2, 3)


def test_adamw_step_matches_the_formula() -> None:
    prompt_VE = torch.tensor([[1.0]], requires_grad=True)
    optimizer = torch.optim.AdamW([prompt_VE], lr=0.1, weight_decay=0.0)
    prompt_VE.grad = torch.tensor([[4.0]])
    assert grpo.descend([prompt_VE], optimizer, max_norm=1.0) == pytest.approx(4.0)
    # Clipped to 1; Adam's first step is lr * g / (|g| + 1e-8).
    assert float(prompt_VE.detach()) == pytest.approx(1.0 - 0.1, abs=1e-6)
    assert prompt_VE.grad is None
    assert math.isfinite(float(prompt_VE.detach()))
