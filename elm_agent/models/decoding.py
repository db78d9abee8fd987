"""Drawing tokens: rows in flight, who draw a token each at every step, and the pure functions this is made of.

Knows nothing of text. A row's random numbers come from its own seed, so that a row draws the same tokens
whatever else is in the batch (up to rounding of the logits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from elm_agent.models.network import Network, Prefix, wide
from elm_agent.models.slots import Slots
from elm_agent.models.step import step


@dataclass(slots=True)
class Row:
    """One row in flight and what the decode step knew of each of its tokens."""

    max_new_tokens: int
    temperature: float = 0.0  # 0: greedy
    seed: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # nats, at temperature 1
    # Where something other than this exact network drew them: nats, at the row's temperature; else empty.
    sampler_logprobs: list[float] = field(default_factory=list)
    certainties: list[float] = field(default_factory=list)  # nats
    finished: bool = False  # the last token is an end token
    dropped: bool = False  # nobody wants it any more: it leaves at the next step

    @property
    def going(self) -> bool:
        """Whether it draws another token."""
        return not (self.finished or self.dropped) and len(self.tokens) < self.max_new_tokens

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


class Decoder:
    """Rows in flight. They join with what they have read, draw a token at every step, and leave when they are done.

    Where the network's layers are known, rows have slots in one key-value store, and others may join at any step.
    Elsewhere transformers keeps the batch, so a batch has to be done before the next one begins: see ``open``.
    """

    def __init__(self, network: Network, end_ids: Sequence[int]) -> None:
        self._network = network
        self._ends = frozenset(end_ids)
        self._flight: _Slotted | _Batched = _Slotted(network) if network.why_slow is None else _Batched(network)
        self._logits_BV: torch.Tensor | None = None
        self._uniforms: list[np.ndarray | None] = []
        self.rows: list[Row] = []

    @property
    def open(self) -> bool:
        """Whether rows may join now."""
        return not self.rows or isinstance(self._flight, _Slotted)

    def join(self, prefix: Prefix, logits_BV: torch.Tensor, rows: Sequence[Row]) -> None:
        """Take on B rows that ``prefix`` holds (it is consumed); ``logits_BV`` are those of their first tokens."""
        self._flight.join(prefix)
        self._logits_BV = logits_BV if self._logits_BV is None else torch.cat([self._logits_BV, logits_BV])
        self._uniforms += [row.uniforms() if row.temperature > 0 else None for row in rows]
        self.rows += rows

    @torch.no_grad()
    def step(self) -> None:
        """Draw a token for every row in flight; rows that are done leave."""
        self._leave()
        if self._logits_BV is None:
            return
        self._draw(self._logits_BV)
        self._leave()
        if self.rows:
            tokens_B = torch.tensor([row.tokens[-1] for row in self.rows], device=self._network.device)
            self._logits_BV = self._flight.step(tokens_B)

    def _draw(self, logits_BV: torch.Tensor) -> None:
        drawn = [len(row.tokens) for row in self.rows]
        uniforms_B = torch.tensor(
            [0.0 if u is None else float(u[n]) for u, n in zip(self._uniforms, drawn, strict=True)],
            dtype=torch.float64,
            device=logits_BV.device,
        )
        temperatures_B = torch.tensor([row.temperature for row in self.rows], device=logits_BV.device)
        tokens_B = pick_tokens(logits_BV, temperatures_B, uniforms_B)
        logprobs_B, certainties_B = token_scores(logits_BV, tokens_B)
        columns = zip(self.rows, tokens_B.tolist(), logprobs_B.tolist(), certainties_B.tolist(), strict=True)
        for row, token, logprob, certainty in columns:
            row.tokens.append(token)
            row.logprobs.append(logprob)
            row.certainties.append(certainty)
            row.finished = token in self._ends

    def _leave(self) -> None:
        """Let go of rows that are done."""
        kept = [index for index, row in enumerate(self.rows) if row.going]
        if len(kept) < len(self.rows):
            self.rows = [self.rows[index] for index in kept]
            self._uniforms = [self._uniforms[index] for index in kept]
            self._flight.keep(kept)
            if self._logits_BV is not None:
                self._logits_BV = self._logits_BV[kept] if kept else None


class _Slotted:
    """Rows in slots of one store."""

    def __init__(self, network: Network) -> None:
        self._model = network.model
        self._slots = Slots()

    def join(self, prefix: Prefix) -> None:
        self._slots.add(prefix.states(), prefix.mask_BL)

    def keep(self, rows: list[int]) -> None:
        self._slots.keep(rows)

    def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
        return wide(step(self._model, self._slots, tokens_B))


class _Batched:
    """Rows of one batch in a cache of transformers."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._prefix: Prefix | None = None

    def join(self, prefix: Prefix) -> None:
        assert self._prefix is None
        self._prefix = prefix

    def keep(self, rows: list[int]) -> None:
        assert self._prefix is not None
        if rows:
            self._prefix.select(torch.tensor(rows, device=self._network.device))
        else:
            self._prefix = None

    def step(self, tokens_B: torch.Tensor) -> torch.Tensor:
        assert self._prefix is not None
        return self._network.extend(self._prefix, tokens_B[:, None])[:, -1]


def decode(
    network: Network,
    prefix: Prefix,
    logits_BV: torch.Tensor,
    rows: Sequence[Row],
    end_ids: Sequence[int],
) -> None:
    """Fill ``rows`` token by token until each has ended or reached its limit.

    ``prefix`` holds the B rows already read (it is consumed), ``logits_BV`` their next-token logits.
    """
    decoder = Decoder(network, end_ids)
    decoder.join(prefix, logits_BV, rows)
    while decoder.rows:
        decoder.step()
