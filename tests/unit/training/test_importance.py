"""Tokens that another sampler drew: what they weigh in the update, and what the step's record says of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import pytest
import torch
from slow_reference import open_model, slow_loss

from elm_agent.errors import TrainingError
from elm_agent.models.decoding import Row
from elm_agent.models.engine import LocalModel
from elm_agent.models.tree import branches
from elm_agent.protocols import Trained
from elm_agent.records import Recipe, StepRecord
from elm_agent.tasks import get_task
from elm_agent.training import GrpoTrainer, grpo, numerics, update
from elm_agent.training.checks import refuse_unsound

QUESTION = "What is 2 plus 3?"
COMPLETIONS = [[40, 41, 42, 43, 44, 45, 46], [50, 51], [60, 61, 62, 63]]
REWARDS = [1.0, 0.0, 1.0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    model = open_model(tmp_path_factory.mktemp("tiny"))
    yield model
    model.close()


def pulled(
    model: LocalModel, recipe: Recipe, sampler: Sequence[Sequence[float]], token_budget: int
) -> tuple[update.Pull, torch.Tensor, torch.Tensor]:
    """One update on the completions: what it says, the memory with its gradient, and the memory as it began."""
    network, prompt_ids = model.network, list(model.encode(get_task("number").messages(QUESTION)))
    initial_VE = numerics.initial_prompt(model.text_embeddings(QUESTION), 5)
    torch.manual_seed(1)
    prompt_VE = (initial_VE + 0.1 * torch.randn_like(initial_VE)).requires_grad_(True)
    text_TE = network.embed(prompt_ids[:-1])
    prefix, _ = network.read([torch.cat([prompt_VE, text_TE])])
    with torch.no_grad():
        reference = network.read([text_TE])[0] if recipe.beta else None
    rows = [
        Row(max_new_tokens=7, tokens=tokens, sampler_logprobs=list(logprobs))
        for tokens, logprobs in zip(COMPLETIONS, sampler, strict=True)
    ]
    advantages_G = numerics.group_advantages(REWARDS)
    pull = update.backward(
        network, prefix, reference, prompt_ids[-1], rows, advantages_G, recipe, token_budget=token_budget
    )
    return pull, prompt_VE, initial_VE


@pytest.mark.parametrize(("beta", "token_budget"), [(0.0, 1024), (0.3, 8)])
def test_each_token_weighs_its_truncated_ratio(wide: LocalModel, beta: float, token_budget: int) -> None:
    recipe = Recipe(rollouts=3, max_new_tokens=7, temperature=0.8, beta=beta)
    sampler = [[-5.0 - 0.3 * (place + index) for place in range(len(row))] for index, row in enumerate(COMPLETIONS)]
    pull, prompt_VE, initial_VE = pulled(wide, recipe, sampler, token_budget)

    prompt_ids = list(wide.encode(get_task("number").messages(QUESTION)))
    again_VE = prompt_VE.detach().requires_grad_(True)
    network = wide.network.model
    expected = slow_loss(network, again_VE, initial_VE, prompt_ids, COMPLETIONS, REWARDS, recipe, sampler)
    (expected_grad,) = torch.autograd.grad(expected, [again_VE])
    assert prompt_VE.grad is not None
    exactness = 1e-10 if network.config.model_type == "gpt2" else 1e-5
    assert float((prompt_VE.grad - expected_grad).norm() / expected_grad.norm()) < exactness
    assert pull.loss == pytest.approx(float(expected.detach()), rel=exactness, abs=1e-9)
    assert pull.ratio_mean is not None
    assert pull.ratio_max is not None
    assert 0 < pull.ratio_mean < pull.ratio_max


def test_what_the_policy_would_have_drawn_alike_changes_no_bit(model: LocalModel) -> None:
    recipe = Recipe(rollouts=3, max_new_tokens=7, temperature=0.8, beta=0.1)
    plain, plain_VE, _ = pulled(model, recipe, [[], [], []], 1024)
    assert (plain.ratio_mean, plain.ratio_max) == (None, None)
    # What the update itself computes, found out by a sampler that gives every token probability 1.
    found: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            numerics, "importance_ratios", lambda now, _: found.append(now.detach()) or torch.ones_like(now)
        )
        pulled(model, recipe, [[0.0] * len(row) for row in COMPLETIONS], 1024)
    order = branches(COMPLETIONS, 1024)[0]
    sampler: list[list[float]] = [[], [], []]
    for place, index in enumerate(order):
        sampler[index] = found[0][place, : len(COMPLETIONS[index])].tolist()
    alike, alike_VE, _ = pulled(model, recipe, sampler, 1024)
    assert (alike.ratio_mean, alike.ratio_max) == (1.0, 1.0)
    assert (alike.loss, alike.kl) == (plain.loss, plain.kl)
    assert plain_VE.grad is not None
    assert alike_VE.grad is not None
    assert torch.equal(alike_VE.grad, plain_VE.grad)


def test_the_record_of_a_step_says_how_far_the_sampler_was(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(rollouts=4, steps=1, max_new_tokens=6, virtual_tokens=5, beta=0.1)
    exact = trained(model, recipe).curve[0]
    assert (exact.ratio_mean, exact.ratio_max) == (None, None)
    drawn = grpo.sample_group

    def elsewhere(*args: object, **options: object) -> list[Row]:
        rows = drawn(*args, **options)  # type: ignore[arg-type]
        for row in rows:
            row.sampler_logprobs = [-9.0] * len(row.tokens)
        return rows

    monkeypatch.setattr(grpo, "sample_group", elsewhere)
    record = trained(model, recipe).curve[0]
    assert record.ratio_mean is not None
    assert record.ratio_max is not None
    assert 1.0 < record.ratio_mean <= record.ratio_max
    assert StepRecord(**asdict(record)) == record


def trained(model: LocalModel, recipe: Recipe) -> Trained:
    return GrpoTrainer(model, get_task("text")).train(QUESTION, recipe=recipe, seed=0)


def test_a_sampler_whose_probabilities_are_not_finite_is_refused() -> None:
    row = Row(max_new_tokens=2, tokens=[1, 2], logprobs=[-1.0, -1.0], sampler_logprobs=[-1.0, math.nan])
    with pytest.raises(TrainingError, match="not finite at token 2 of rollout 1"):
        refuse_unsound([row], 0)
