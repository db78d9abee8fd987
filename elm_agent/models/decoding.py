"""Drawing tokens: rows in flight, who draw a token each at every step, and the pure functions this is made of.

Knows nothing of text. A row's random numbers come from its own seed, so that a row draws the same tokens
whatever else is in the batch (up to rounding of the logits), and whatever was guessed about it: a guess is read
ahead, and counts if the row then draws it. Rows that began alike and have drawn the same so far are one row of the
network until they part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch

from elm_agent.errors import ModelError
from elm_agent.models.drafting import Drafts
from elm_agent.models.head import token_logprobs
from elm_agent.models.lowrank import Adapter, Joint, joint
from elm_agent.models.network import Network, Prefix, wide
from elm_agent.models.slots import Slots
from elm_agent.models.step import step

_GUESSES = 3  # tokens of a row that are read ahead at most
_POSITIONS = 32  # of all rows, guesses among them: beyond, each costs as much as the ones before
_IN_CACHE = 2**17  # numbers of which a processor core keeps some copies near

_Way = tuple[int, int, tuple[int, ...]]
"""How rows go on: their place, how many of their guesses were wrong, and what they read next."""


@dataclass(slots=True)
class Row:
    """One row in flight and what the decode step knew of each of its tokens."""

    max_new_tokens: int
    temperature: float = 0.0  # 0: greedy
    seed: int = 0
    drafts: Drafts | None = None  # guesses at what it draws
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # nats, at temperature 1
    # Where something other than the exact network drew them: nats, at the row's temperature (greedy: 1); else empty.
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
    sampled = temperatures_B > 0
    if not bool(sampled.any()):
        return logits_BV.argmax(dim=-1)
    # On a CPU a few rows at a time: what is between two sums then never leaves the core.
    few = max(1, _IN_CACHE // logits_BV.shape[-1]) if logits_BV.device.type == "cpu" else len(logits_BV)
    divisors_B = torch.where(sampled, temperatures_B, 1.0)
    parts = [slice(first, first + few) for first in range(0, len(logits_BV), few)]
    draws_B = torch.cat([_inverse_cdf(logits_BV[part], divisors_B[part], uniforms_B[part]) for part in parts])
    draws_B = draws_B.clamp(max=logits_BV.shape[-1] - 1)
    return draws_B if bool(sampled.all()) else torch.where(sampled, draws_B, logits_BV.argmax(dim=-1))


def _inverse_cdf(logits_BV: torch.Tensor, temperatures_B: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    cdf_BV = (logits_BV / temperatures_B[:, None]).softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    # The sum may end a little below 1: scale by it, so that the last token is reachable and none is overrun.
    return torch.searchsorted(cdf_BV, (uniforms_B * cdf_BV[:, -1])[:, None], right=True)[:, 0]


def token_scores(logits_BV: torch.Tensor, tokens_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability (B,) of the chosen tokens and self-certainty (B,) of the distributions, in nats.

    Self-certainty is KL(uniform || p) = -mean_v log p_v - log V (Kang et al., arXiv 2502.18581).
    """
    logprobs_BV = logits_BV.log_softmax(dim=-1)
    chosen_B = logprobs_BV.gather(1, tokens_B[:, None])[:, 0]
    return chosen_B, -logprobs_BV.mean(dim=-1) - float(np.log(logits_BV.shape[-1]))


class Decoder:
    """Rows in flight. They join with what they have read, draw a token at every step, and leave when they are done.

    A row with drafts draws more in a step when they are right. On a CPU, where every row of a step costs time, rows
    that have read and drawn the same share a place in the batch; on a GPU recorded steps would be recorded anew.
    Where the network's layers are known, rows have slots in one key-value store, and others may join at any step.
    Elsewhere transformers keeps the batch, so a batch has to be done before the next one begins: see ``open``.
    """

    def __init__(self, network: Network, end_ids: Sequence[int]) -> None:
        self._network = network
        self._ends = frozenset(end_ids)
        self._flight: _Slotted | _Batched = _Slotted(network) if network.why_slow is None else _Batched(network)
        self._sharing = network.device.type == "cpu"
        self._places = 0  # of the batch, that are taken
        self._place: list[int] = []  # for each row, which of them is its
        self._uniforms: list[np.ndarray | None] = []
        self._logits_NV: torch.Tensor | None = None  # after each token that was read last
        self._at: list[int] = []  # for each row, where among them those of its next token are
        self._guesses: list[list[int]] = []  # for each row, tokens that were read after its last one
        self.rows: list[Row] = []

    @property
    def open(self) -> bool:
        """Whether rows may join now."""
        return not self.rows or isinstance(self._flight, _Slotted)

    def join(self, prefix: Prefix, logits_BV: torch.Tensor, rows: Sequence[Row]) -> None:
        """Take on rows: ``prefix`` holds what each has read, and is consumed; or the one row with which all of them
        begin, and stays as it is. ``logits_BV`` are those of the first tokens."""
        if len(logits_BV) == 1:
            alike = 1 if self._sharing else len(rows)
            prefix, logits_BV = prefix.shared(alike), logits_BV.expand(alike, -1)
        begun = range(len(rows)) if len(logits_BV) == len(rows) else [0] * len(rows)
        longest = max(row.max_new_tokens for row in rows)
        most = int(prefix.mask_BL.sum(dim=1).max()) + longest
        self._flight.join(prefix, most, len(self.rows) + len(rows))
        first = 0 if self._logits_NV is None else self._logits_NV.shape[0]
        self._logits_NV = logits_BV if self._logits_NV is None else torch.cat([self._logits_NV, logits_BV])
        self._at += [first + number for number in begun]
        self._place += [self._places + number for number in begun]
        self._places += len(logits_BV)
        self._guesses += [[] for _ in rows]
        self._uniforms += [row.uniforms() if row.temperature > 0 else None for row in rows]
        self.rows += rows

    @torch.no_grad()
    def step(self) -> None:
        """Draw a token for every row in flight; rows that are done leave."""
        self._leave()
        drawing = list(range(len(self.rows)))
        while drawing:
            self._draw(drawing)
            drawing = [index for index in drawing if self._guessed_right(index)]
        self._leave()
        if self.rows:
            self._read()

    def _draw(self, drawing: list[int]) -> None:
        """Draw a token for these rows from the logits at hand."""
        assert self._logits_NV is not None
        drawing = sorted(drawing, key=self._at.__getitem__)  # where none share, logits are then as they lie
        at, rows = [self._at[index] for index in drawing], [self.rows[index] for index in drawing]
        logits_BV = self._logits_NV if at == list(range(self._logits_NV.shape[0])) else self._logits_NV[at]
        uniforms = [self._uniforms[index] for index in drawing]
        uniforms_B = torch.tensor(
            [0.0 if u is None else float(u[len(row.tokens)]) for u, row in zip(uniforms, rows, strict=True)],
            dtype=torch.float64,
            device=logits_BV.device,
        )
        temperatures_B = torch.tensor([row.temperature for row in rows], device=logits_BV.device)
        tokens_B = pick_tokens(logits_BV, temperatures_B, uniforms_B)
        logprobs_B, certainties_B = token_scores(logits_BV, tokens_B)
        columns = zip(rows, tokens_B.tolist(), logprobs_B.tolist(), certainties_B.tolist(), strict=True)
        for row, token, logprob, certainty in columns:
            row.tokens.append(token)
            row.logprobs.append(logprob)
            row.certainties.append(certainty)
            row.finished = token in self._ends
        if not self._network.exact:
            softened_BV = logits_BV / torch.where(temperatures_B > 0, temperatures_B, 1.0)[:, None]
            sampler_B = token_logprobs(softened_BV, tokens_B, 1.0)
            for row, logprob in zip(rows, sampler_B.tolist(), strict=True):
                row.sampler_logprobs.append(logprob)

    def _guessed_right(self, index: int) -> bool:
        """Whether the row goes on and has drawn the next of its guesses: then the logits after it are at hand."""
        row, guess = self.rows[index], self._guesses[index]
        if not (guess and row.going and guess[0] == row.tokens[-1]):
            return False
        del guess[0]
        self._at[index] += 1
        return True

    def _read(self) -> None:
        """Read the token that each row drew last, and new guesses, in place of the old ones that it did not draw.

        Rows of one place who go on alike stay together, the others part.
        """
        wrong = [len(guess) for guess in self._guesses]
        self._guesses = self._new_guesses()
        pieces = [(row.tokens[-1], *guess) for row, guess in zip(self.rows, self._guesses, strict=True)]
        ways = list(zip(self._place, wrong, pieces, strict=True))
        parted = _settled(list(dict.fromkeys(ways)))
        if (kept := [place for place, _, _ in parted]) != list(range(self._places)):
            self._flight.keep(kept)
        self._place, self._places = [parted.index(way) for way in ways], len(parted)
        self._logits_NV = self._flight.step([piece for _, _, piece in parted], [count for _, count, _ in parted])
        firsts = [0, *accumulate(len(piece) for _, _, piece in parted)]
        self._at = [firsts[place] for place in self._place]

    def _new_guesses(self) -> list[list[int]]:
        drafting = sum(row.drafts is not None for row in self.rows)
        most = min(_GUESSES, (_POSITIONS - len(self.rows)) // drafting) if drafting else 0
        return [
            row.drafts.propose(row.tokens, min(most, row.max_new_tokens - len(row.tokens) - 1)) if row.drafts else []
            for row in self.rows
        ]

    def _leave(self) -> None:
        """Let go of rows that are done."""
        kept = [index for index, row in enumerate(self.rows) if row.going]
        if len(kept) < len(self.rows):
            self.rows = [self.rows[index] for index in kept]
            self._uniforms = [self._uniforms[index] for index in kept]
            self._at = [self._at[index] for index in kept]
            self._place = [self._place[index] for index in kept]
            self._guesses = [self._guesses[index] for index in kept]
            if not kept:
                self._flight.keep([])
                self._logits_NV, self._places = None, 0


def _settled(ways: Sequence[_Way]) -> list[_Way]:
    """The order of ways by which fewest move: one of each place stays there, others take the places that are free."""
    stay: dict[int, _Way] = {}
    for way in ways:
        if way[0] < len(ways):
            stay.setdefault(way[0], way)
    others = iter([way for way in ways if stay.get(way[0]) is not way])
    return [stay[place] if place in stay else next(others) for place in range(len(ways))]


class _Slotted:
    """Rows in slots of one store."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._slots = Slots()
        self._adapters: list[Adapter | None] = []
        self._joint: Joint | None = None  # of these adapters and perhaps of rows that have left

    def join(self, prefix: Prefix, most: int, rows: int) -> None:
        self._slots.add(prefix.states(), prefix.mask_BL, most=most, slots=rows)
        self._adapters += prefix.adapters_B

    def keep(self, rows: list[int]) -> None:
        self._slots.keep(rows)
        self._adapters = [self._adapters[row] for row in rows]
        if not any(self._adapters):
            self._joint = None

    def step(self, pieces: Sequence[Sequence[int]], wrong: Sequence[int]) -> torch.Tensor:
        """Forget the last ``wrong`` tokens of each row, then read a piece of each: logits (N, V) after each token."""
        if any(wrong):
            self._slots.forget(wrong)
        counts = [len(piece) for piece in pieces]
        tokens_N = torch.tensor([token for piece in pieces for token in piece], device=self._network.device)
        several = counts if max(counts) > 1 else None
        if several is None and (logits_NV := self._quickly(tokens_N)) is not None:
            return logits_NV
        adapters = [adapter for adapter, count in zip(self._adapters, counts, strict=True) for _ in range(count)]
        with self._network.beside(adapters):
            return wide(step(self._network.model, self._slots, tokens_N, several))

    def _quickly(self, tokens_B: torch.Tensor) -> torch.Tensor | None:
        """One token of every row by a quick step, where there is one for these rows."""
        if not any(self._adapters):
            quick = self._network.quick_step
            return None if quick is None else quick(self._slots, tokens_B)
        if (beside := self._network.quick_step_beside) is None:
            return None
        self._joint = joint(self._adapters, self._joint)
        return beside(self._slots, tokens_B, self._joint) if self._joint.finite else None


class _Batched:
    """Rows of one batch in a cache of transformers."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._prefix: Prefix | None = None

    def join(self, prefix: Prefix, most: int, rows: int) -> None:
        del most, rows  # it takes room as it goes
        assert self._prefix is None
        self._prefix = prefix

    def keep(self, rows: list[int]) -> None:
        assert self._prefix is not None
        if rows:
            self._prefix.select(torch.tensor(rows, device=self._network.device))
        else:
            self._prefix = None

    def step(self, pieces: Sequence[Sequence[int]], wrong: Sequence[int]) -> torch.Tensor:
        assert self._prefix is not None
        if any(wrong) or max(map(len, pieces)) > 1:
            why = self._network.why_slow
            raise ModelError(f"drafts: {why}, so its rows are read one token at a time: leave them out")
        return self._network.extend(self._prefix, torch.tensor(pieces, device=self._network.device))[:, -1]


def decode(
    network: Network,
    prefix: Prefix,
    logits_BV: torch.Tensor,
    rows: Sequence[Row],
    end_ids: Sequence[int],
) -> None:
    """Fill ``rows`` token by token until each has ended or reached its limit.

    ``prefix`` and ``logits_BV`` as in ``Decoder.join``.
    """
    decoder = Decoder(network, end_ids)
    decoder.join(prefix, logits_BV, rows)
    while decoder.rows:
        decoder.step()
