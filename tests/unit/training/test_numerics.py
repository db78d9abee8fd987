"""The step's mathematics against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from elm_agent.models.head import token_logprobs
from elm_agent.training import numerics


def test_advantages_subtract_the_mean_and_do_not_divide_by_the_deviation() -> None:
    assert numerics.group_advantages([1.0, 0.0, 0.0, 1.0]).tolist() == [0.5, -0.5, -0.5, 0.5]
    assert numerics.group_advantages([1.0, 0.0, 0.0, 0.0]).tolist() == [0.75, -0.25, -0.25, -0.25]


def test_equal_rewards_give_no_advantage() -> None:
    assert numerics.group_advantages([1.0, 1.0, 1.0]).tolist() == [0.0, 0.0, 0.0]


def test_a_failed_reward_is_left_out_of_the_mean_instead_of_counting_as_zero() -> None:
    assert numerics.group_advantages([1.0, None, 0.0]).tolist() == [0.5, 0.0, -0.5]
    assert numerics.group_advantages([None, None]).tolist() == [0.0, 0.0]


def test_token_logprobs_are_those_of_the_scaled_distribution() -> None:
    logits_GTV = torch.tensor([[[0.0, math.log(3.0)], [math.log(4.0), 0.0]]], dtype=torch.float64)
    tokens_GT = torch.tensor([[1, 1]])
    at_one = token_logprobs(logits_GTV, tokens_GT, 1.0)
    torch.testing.assert_close(at_one.exp(), torch.tensor([[0.75, 0.2]], dtype=torch.float64))
    # At temperature 0.5 the odds are squared: 9 to 1, and 1 to 16.
    at_half = token_logprobs(logits_GTV, tokens_GT, 0.5)
    torch.testing.assert_close(at_half.exp(), torch.tensor([[0.9, 1 / 17]], dtype=torch.float64))


def test_clipping_bounds_the_gain_but_not_the_loss() -> None:
    old_GT = torch.zeros(2, 3, dtype=torch.float64)
    new_GT = torch.log(torch.tensor([[1.5, 1.1, 0.5], [1.5, 1.1, 0.5]], dtype=torch.float64))
    objective = numerics.clipped_objective(new_GT, old_GT, torch.tensor([1.0, -1.0]), 0.2)
    # A = 1: min(1.5, 1.2), 1.1, min(0.5, 0.8). A = -1: min(-1.5, -1.2), -1.1, min(-0.5, -0.8).
    expected = torch.tensor([[1.2, 1.1, 0.5], [-1.5, -1.1, -0.8]], dtype=torch.float64)
    torch.testing.assert_close(objective, expected)


def test_clip_fraction_counts_real_tokens_outside_the_range() -> None:
    old_GT = torch.zeros(1, 4)
    new_GT = torch.log(torch.tensor([[1.5, 1.1, 0.5, 9.0]]))
    mask_GT = torch.tensor([[True, True, True, False]])
    assert numerics.clip_fraction(new_GT, old_GT, mask_GT, 0.2) == pytest.approx(2 / 3)


def test_a_tokens_weight_is_what_the_policy_gives_it_over_what_the_sampler_gave() -> None:
    policy = torch.log(torch.tensor([[0.5, 0.5, 0.9]], dtype=torch.float64)).requires_grad_(True)
    sampler = torch.log(torch.tensor([[0.25, 0.8, 0.3]], dtype=torch.float64))
    ratios = numerics.importance_ratios(policy, sampler)
    torch.testing.assert_close(ratios, torch.tensor([[2.0, 0.625, 3.0]], dtype=torch.float64))
    assert not ratios.requires_grad


def test_a_token_weighs_exactly_one_where_sampler_and_policy_agree() -> None:
    logprobs = torch.tensor([[-0.1, -3.3333333, 0.0, -87.0]])
    assert numerics.importance_ratios(logprobs, logprobs.clone()).tolist() == [[1.0] * 4]


def test_k3_is_zero_at_equality_and_positive_elsewhere() -> None:
    policy = torch.log(torch.tensor([[0.5, 0.5, 0.25]], dtype=torch.float64))
    reference = torch.log(torch.tensor([[0.5, 0.25, 0.5]], dtype=torch.float64))
    # d = log(ref / policy): 0, -log 2, log 2; exp(d) - d - 1.
    expected = torch.tensor([[0.0, 0.5 + math.log(2) - 1, 2 - math.log(2) - 1]], dtype=torch.float64)
    torch.testing.assert_close(numerics.kl_k3(policy, reference), expected)


def test_loss_divides_by_group_and_limit_whatever_the_lengths() -> None:
    objective_GT = torch.tensor([[1.0, 2.0, 100.0], [3.0, 100.0, 100.0]])
    kl_GT = torch.tensor([[0.5, 0.5, 9.0], [1.0, 9.0, 9.0]])
    mask_GT = torch.tensor([[True, True, False], [True, False, False]])
    loss = numerics.dr_grpo_loss(objective_GT, kl_GT, mask_GT, max_tokens=5, beta=0.1)
    assert float(loss) == pytest.approx((-(1 + 2 + 3) + 0.1 * (0.5 + 0.5 + 1.0)) / (2 * 5))
    without = numerics.dr_grpo_loss(objective_GT, None, mask_GT, max_tokens=5, beta=0.1)
    assert float(without) == pytest.approx(-6 / 10)


def test_the_initial_prompt_cuts_or_repeats_the_question() -> None:
    question_TE = torch.arange(6, dtype=torch.float32).view(3, 2)
    assert numerics.initial_prompt(question_TE, 2).tolist() == [[0, 1], [2, 3]]
    assert numerics.initial_prompt(question_TE, 5).tolist() == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]


@pytest.mark.parametrize(("given", "kept"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")])
def test_the_initial_prompt_is_at_least_float32(given: str, kept: str) -> None:
    question_TE = torch.ones(2, 2, dtype=getattr(torch, given))
    assert numerics.initial_prompt(question_TE, 2).dtype == getattr(torch, kept)
