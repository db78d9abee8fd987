"""The gradient of one step on one memory, in micro-batches: METHOD 1d on what a group has drawn.

The prompt's keys and values are read once, with gradient, and shared by the group, and so is what completions begin
with in common (``models.tree``). Each micro-batch leaves its gradient on the prompt's; only then does it go on to the
memory. The sum is the same however the group is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.utils.rnn import pad_sequence

from elm_agent.models.decoding import Row
from elm_agent.models.network import Network, Prefix
from elm_agent.models.sparing import without_gates
from elm_agent.models.tree import branches
from elm_agent.records import Recipe
from elm_agent.training import numerics

TOKEN_BUDGET = 1024
"""Completion positions of a micro-batch."""
CPU_TOKEN_BUDGET = 256
"""On a CPU: more take memory and no less time (docs/LOG.md)."""

PartLoss = Callable[[list[int], torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From (indices of rows, tokens (B, T), mask (B, T), log-probabilities (B, T)) to the part's share of the loss."""


@dataclass(frozen=True, slots=True)
class Pull:
    """What one update was made of: the loss, mean KL per token in nats, and the share of tokens that were clipped.

    ``ratio_mean``, ``ratio_max``: of the tokens' importance ratios, before they are truncated; None where the policy
    itself drew the tokens. From a sound sampler the mean is near 1.
    """

    loss: float = 0.0
    kl: float = 0.0
    clip_fraction: float = 0.0
    ratio_mean: float | None = None
    ratio_max: float | None = None


def backward(
    network: Network,
    prefix: Prefix,
    reference: Prefix | None,
    last_id: int,
    rows: Sequence[Row],
    advantages_G: torch.Tensor,
    recipe: Recipe,
    *,
    token_budget: int = TOKEN_BUDGET,
) -> Pull:
    """Put the gradient of the policy's loss on the memory. ``prefix``: one row, the prompt without ``last_id``.

    Where rows say with which probabilities another sampler drew them, each token's objective has its truncated
    importance ratio as a weight; the KL term has none, as in TRL.
    """
    if reference is None and not bool(advantages_G.any()):
        return Pull()  # every term is exactly zero, and so is the gradient
    kl = clipped = ratios = largest = 0.0
    corrected = any(row.sampler_logprobs for row in rows)

    def part_loss(
        part: list[int], tokens_BT: torch.Tensor, mask_BT: torch.Tensor, logprobs_BT: torch.Tensor
    ) -> torch.Tensor:
        nonlocal kl, clipped, ratios, largest
        old_BT = logprobs_BT.detach()  # one update per group: the sampling policy is the current one
        objective_BT = numerics.clipped_objective(logprobs_BT, old_BT, advantages_G[part], recipe.clip_eps)
        if corrected:
            sampler_BT = _padded([rows[index].sampler_logprobs for index in part]).to(logprobs_BT)
            ratios_BT = numerics.importance_ratios(logprobs_BT, sampler_BT) * mask_BT
            objective_BT = objective_BT * ratios_BT.clamp(max=numerics.RATIO_CAP)
            ratios, largest = ratios + float(ratios_BT.sum()), max(largest, float(ratios_BT.max()))
        kl_BT = None
        if reference is not None:
            with torch.no_grad():
                reference_BT = reference.network.logprobs(reference, last_id, tokens_BT, mask_BT, recipe.temperature)
            kl_BT = numerics.kl_k3(logprobs_BT, reference_BT)
            kl += float((kl_BT.detach() * mask_BT).sum())
        clipped += numerics.clip_fraction(logprobs_BT.detach(), old_BT, mask_BT, recipe.clip_eps) * int(mask_BT.sum())
        return numerics.dr_grpo_loss(
            objective_BT, kl_BT, mask_BT, rows=len(rows), max_tokens=recipe.max_new_tokens, beta=recipe.beta
        )

    loss = _gather(network, prefix, last_id, rows, recipe.temperature, part_loss, token_budget)
    tokens = sum(len(row.tokens) for row in rows)
    pull = Pull(loss, kl / tokens, clipped / tokens)
    return replace(pull, ratio_mean=ratios / tokens, ratio_max=largest) if corrected else pull


def imitate(
    network: Network, prefix: Prefix, last_id: int, rows: Sequence[Row], *, token_budget: int = TOKEN_BUDGET
) -> Pull:
    """Put the gradient of the rows' mean cross-entropy per token, at temperature 1, on the memory."""
    tokens = sum(len(row.tokens) for row in rows)

    def part_loss(
        _part: list[int], _tokens_BT: torch.Tensor, mask_BT: torch.Tensor, logprobs_BT: torch.Tensor
    ) -> torch.Tensor:
        return numerics.cross_entropy(logprobs_BT, mask_BT, tokens=tokens)

    return Pull(_gather(network, prefix, last_id, rows, 1.0, part_loss, token_budget))


def _gather(
    network: Network,
    prefix: Prefix,
    last_id: int,
    rows: Sequence[Row],
    temperature: float,
    part_loss: PartLoss,
    token_budget: int,
) -> float:
    """Take the rows part by part, and put the gradient of all on what ``prefix`` was read from; the whole loss."""
    shared, roots = prefix.leaf()
    loss = 0.0
    drawn = [row.tokens for row in rows]
    cut = branches if network.reads_trees(prefix, max(map(len, drawn))) else micro_batches
    for part in cut(drawn, token_budget):
        tokens_BT, mask_BT = completions([drawn[index] for index in part], network.device)
        with without_gates():
            logprobs_BT = network.logprobs(shared, last_id, tokens_BT, mask_BT, temperature)
        share = part_loss(part, tokens_BT, mask_BT, logprobs_BT)
        torch.autograd.backward(share)
        loss += float(share.detach())
    pairs = [(root, leaf.grad) for root, leaf in roots if leaf.grad is not None]
    torch.autograd.backward([root for root, _ in pairs], [gradient for _, gradient in pairs])
    return loss


def micro_batches(rows: Sequence[Sequence[int]], token_budget: int) -> list[list[int]]:
    """Indices of rows, longest first, in parts of at most ``token_budget`` padded positions, or of one row."""
    lengths = [len(row) for row in rows]
    parts: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if parts and (len(parts[-1]) + 1) * lengths[parts[-1][0]] <= token_budget:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts


def completions(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Completions padded on the right with 0: tokens (B, T) int64, and the bool mask (B, T) of what is real."""
    longest = max(len(row) for row in rows)
    tokens_BT = torch.tensor([list(row) + [0] * (longest - len(row)) for row in rows], device=device)
    lengths_B = torch.tensor([len(row) for row in rows], device=device)
    return tokens_BT, torch.arange(longest, device=device)[None, :] < lengths_B[:, None]


def _padded(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    """Numbers padded on the right with 0: float64 (B, T)."""
    return pad_sequence([torch.tensor(row, dtype=torch.float64) for row in rows], batch_first=True)
