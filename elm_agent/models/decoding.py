"""Drawing tokens: the decode loop over a batch of rows, and the pure functions it is made of.

Knows nothing of text. A row's random numbers come from its own seed, so that a row draws the same tokens
whatever else is in the batch (up to rounding of the logits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from elm_agent.models.network import Network, Prefix


@dataclass(slots=True)
class Row:
    """One row in flight and what the decode step knew of each of its tokens."""

    max_new_tokens: int
    temperature: float = 0.0  # 0: greedy
    seed: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # nats, at temperature 1
    certainties: list[float] = field(default_factory=list)  # nats
    finished: bool = False  # the last token is an end token

    def uniforms(self) -> np.ndarray:
        """One number in [0, 1) for each token of this row, a function of the seed alone (Philox)."""
        return np.random.Generator(np.random.Philox(key=self.seed)).random(self.max_new_tokens)


def pick_tokens(logits_BV: torch.Tensor, temperatures_B: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Next token of each row (int64, (B,)): the most likely one at temperature 0, else by inverse CDF.

    ``logits_BV`` float32; ``uniforms_B`` float64 in [0, 1).
    """
    greedy_B = logits_BV.argmax(dim=-1)
    sampled = temperatures_B > 0
    if not bool(sampled.any()):
        return greedy_B
    scaled_BV = logits_BV.double() / torch.where(sampled, temperatures_B, 1.0)[:, None]
    cdf_BV = scaled_BV.softmax(dim=-1).cumsum(dim=-1)
    # The sum may end a little below 1: scale by it, so that the last token is reachable and none is overrun.
    draws_B = torch.searchsorted(cdf_BV, (uniforms_B * cdf_BV[:, -1])[:, None], right=True)[:, 0]
    return torch.where(sampled, draws_B.clamp(max=logits_BV.shape[-1] - 1), greedy_B)


def token_scores(logits_BV: torch.Tensor, tokens_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability (B,) of the chosen tokens and self-certainty (B,) of the distributions, in nats.

    Self-certainty is KL(uniform || p) = -mean_v log p_v - log V (Kang et al., arXiv 2502.18581).
    """
    logprobs_BV = logits_BV.log_softmax(dim=-1)
    chosen_B = logprobs_BV.gather(1, tokens_B[:, None])[:, 0]
    return chosen_B, -logprobs_BV.mean(dim=-1) - float(np.log(logits_BV.shape[-1]))


@torch.no_grad()
def decode(
    network: Network, prefix: Prefix, logits_BV: torch.Tensor, rows: Sequence[Row], end_ids: Sequence[int]
) -> None:
    """Fill ``rows`` token by token until each has ended or reached its limit. Finished rows leave the batch.

    ``prefix`` holds the B rows already read (it is consumed), ``logits_BV`` their next-token logits.
    """
    ends = frozenset(end_ids)
    active = list(rows)
    uniforms = [torch.from_numpy(row.uniforms()) if row.temperature > 0 else None for row in active]
    for step in range(max(row.max_new_tokens for row in active)):
        temperatures_B = torch.tensor([row.temperature for row in active], device=logits_BV.device)
        uniforms_B = torch.tensor(
            [0.0 if u is None else float(u[step]) for u in uniforms],
            dtype=torch.float64,
            device=logits_BV.device,
        )
        tokens_B = pick_tokens(logits_BV, temperatures_B, uniforms_B)
        logprobs_B, certainties_B = token_scores(logits_BV, tokens_B)
        going: list[int] = []
        drawn = zip(active, tokens_B.tolist(), logprobs_B.tolist(), certainties_B.tolist(), strict=True)
        for index, (row, token, logprob, certainty) in enumerate(drawn):
            row.tokens.append(token)
            row.logprobs.append(logprob)
            row.certainties.append(certainty)
            row.finished = token in ends
            if not row.finished and len(row.tokens) < row.max_new_tokens:
                going.append(index)
        if not going:
            return
        if len(going) < len(active):
            keep = torch.tensor(going, device=tokens_B.device)
            prefix.select(keep)
            tokens_B = tokens_B[keep]
            active = [active[index] for index in going]
            uniforms = [uniforms[index] for index in going]
        logits_BV = network.extend(prefix, tokens_B[:, None])[:, -1]
