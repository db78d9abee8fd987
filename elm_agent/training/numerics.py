"""The mathematics of one step as pure functions: tensors in, tensors out.

Shapes: G rollouts of a group, T completion tokens (padded on the right), V vocabulary here.
Sources: GRPO, arXiv 2402.03300; Dr.GRPO, arXiv 2503.20783; the k3 estimator, http://joschu.net/blog/kl-approx.html;
truncated importance sampling per token, https://fengyao.notion.site/off-policy-rl.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

RATIO_CAP = 2.0
"""Most that a token drawn by another sampler may weigh: the bound of what this truncation's variance can grow to."""


def group_advantages(rewards: Sequence[float | None]) -> torch.Tensor:
    """A_i = r_i - mean(r), float64 (G,). Dr.GRPO: no division by the standard deviation (METHOD 1c).

    A reward of None (it failed) is left out of the mean and gets no advantage: a failure is not a zero.
    """
    valid = [reward for reward in rewards if reward is not None]
    mean = sum(valid) / len(valid) if valid else 0.0
    return torch.tensor([0.0 if r is None else r - mean for r in rewards], dtype=torch.float64)


def clipped_objective(
    logprobs_GT: torch.Tensor, old_logprobs_GT: torch.Tensor, advantages_G: torch.Tensor, clip_eps: float
) -> torch.Tensor:
    """min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A) for each token: (G, T), to be maximised (METHOD 1d)."""
    ratio_GT = (logprobs_GT - old_logprobs_GT).exp()
    advantages_G1 = advantages_G.to(logprobs_GT)[:, None]
    return torch.minimum(ratio_GT * advantages_G1, ratio_GT.clamp(1 - clip_eps, 1 + clip_eps) * advantages_G1)


def importance_ratios(logprobs_GT: torch.Tensor, sampler_GT: torch.Tensor) -> torch.Tensor:
    """policy(token) / sampler(token) for each token, without gradient: (G, T). Exactly 1 where both are equal.

    For tokens that were drawn by something that is not quite the policy: the update weighs them by this, truncated
    at ``RATIO_CAP``, as TRL's mode "token_truncate" does. Tokens are corrected one by one, given what came before
    them; that the sampler also came to other beginnings is not.
    """
    return (logprobs_GT.detach() - sampler_GT).exp()


def clip_fraction(
    logprobs_GT: torch.Tensor, old_logprobs_GT: torch.Tensor, mask_GT: torch.Tensor, clip_eps: float
) -> float:
    """Share of completion tokens whose ratio lies outside [1 - eps, 1 + eps]."""
    outside_GT = ((logprobs_GT - old_logprobs_GT).exp() - 1).abs() > clip_eps
    return float((outside_GT & mask_GT).sum() / mask_GT.sum())


def kl_k3(logprobs_GT: torch.Tensor, reference_GT: torch.Tensor) -> torch.Tensor:
    """KL(policy || reference) estimated at each sampled token: exp(d) - d - 1 >= 0, d = ref - policy."""
    difference_GT = reference_GT - logprobs_GT
    return difference_GT.exp() - difference_GT - 1


def dr_grpo_loss(
    objective_GT: torch.Tensor,
    kl_GT: torch.Tensor | None,
    mask_GT: torch.Tensor,
    *,
    max_tokens: int,
    beta: float,
    rows: int | None = None,
) -> torch.Tensor:
    """Scalar loss: -(sum of masked objective - beta * KL) / (G * T_max), the constant normaliser of Dr.GRPO.

    ``rows``: G, where only a part of the group is given; the parts add up to the whole.
    """
    per_token_GT = -objective_GT if kl_GT is None else -objective_GT + beta * kl_GT
    return (per_token_GT * mask_GT).sum() / ((rows or mask_GT.shape[0]) * max_tokens)


def kl_divergence(teacher_TV: torch.Tensor, student_TV: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) over the whole vocabulary at each token, from logits (T, V): (T,), nats."""
    teacher_TV, student_TV = teacher_TV.log_softmax(-1), student_TV.log_softmax(-1)
    return (teacher_TV.exp() * (teacher_TV - student_TV)).sum(-1)


def cross_entropy(logprobs_GT: torch.Tensor, mask_GT: torch.Tensor, *, tokens: int) -> torch.Tensor:
    """Scalar loss: the mean negative log-probability of the targets' ``tokens`` real tokens, in nats.

    ``tokens``: those of all targets, where only a part is given; the parts add up to the whole.
    """
    return -(logprobs_GT * mask_GT).sum() / tokens


def initial_prompt(question_TE: torch.Tensor, virtual_tokens: int) -> torch.Tensor:
    """The question's embeddings cut or repeated to V rows: (V, E), float32 or wider (METHOD 1.1)."""
    repeats = -(-virtual_tokens // question_TE.shape[0])
    rows_VE = question_TE.repeat(repeats, 1)[:virtual_tokens]
    return rows_VE.to(torch.promote_types(rows_VE.dtype, torch.float32)).clone()


def drawn_entropy(logprobs: Sequence[Sequence[float]]) -> float:
    """Nats per token of G completions: the mean of -log p over all tokens that were drawn, each under temperature 1.

    At temperature 1 an unbiased estimate of the policy's entropy where it wrote; below it a little less. No token: 0.
    """
    tokens = sum(len(row) for row in logprobs)
    return -sum(sum(row) for row in logprobs) / tokens if tokens else 0.0


def norm_of(tensors: Sequence[torch.Tensor]) -> float:
    """The Euclidean norm of all their numbers together, summed in float64."""
    return float(sum(float(tensor.detach().double().square().sum()) for tensor in tensors) ** 0.5)
