"""What a step would take at the limits of this machine: formulas, and figures made of what was measured. Pure.

    decode bound    sum over t of max(weight bytes / bandwidth, 2 P rows_t / FLOP/s)
    training bound  (2 + 2) P T / FLOP/s for the policy, and 2 P T / FLOP/s for the reference when there is a KL term

P: parameters that take part in a product for every token; rows_t: rows that draw a t-th token; T: completion tokens.
Forward costs 2 P a token; backward through a frozen model another 2 P (no gradient of weights). Reading the question,
attention and everything that is not a product of matrices are left out, so nothing that computes every token of every
rollout can be quicker than the bound; computing what rollouts begin with in common once can.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The limits of a machine for one model, both measured."""

    parameters: int  # P
    weight_bytes: int
    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One measurement of training: every memory of an arm went some steps further."""

    seconds: float
    seconds_update: float  # of them in updates, of all memories; the rest read, drew and judged rollouts
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """An arm's turns in numbers. Rates are of the median turn's seconds; None: not known."""

    seconds_per_step: float  # median; of all memories together
    seconds_per_step_min: float
    seconds_per_memory_step: float
    seconds_per_memory_step_min: float
    tokens_per_memory_step: float  # median, of tokens drawn
    seconds_per_token: float  # median
    decode_tokens_per_s: float
    train_tokens_per_s: float
    bound_seconds: float | None  # of a step
    share_of_bound: float | None


def decode_bound(lengths: Sequence[int], machine: Machine) -> float:
    """Seconds to draw rows of these lengths together, with as few steps as the longest has tokens."""
    read = machine.weight_bytes / machine.bytes_per_s
    per_row = 2 * machine.parameters / machine.flops_per_s
    rows = (sum(length > step for length in lengths) for step in range(max(lengths, default=0)))
    return sum(max(read, per_row * count) for count in rows)


def training_bound(tokens: int, machine: Machine, *, kl: bool) -> float:
    """Seconds of the forward and backward pass of the policy on so many tokens, and of the reference's forward."""
    return (4 + 2 * kl) * machine.parameters * tokens / machine.flops_per_s


def step_bound(lengths: Sequence[int], machine: Machine, *, kl: bool) -> float:
    """Seconds of one step of memories whose rollouts, all taken together, have these lengths."""
    return decode_bound(lengths, machine) + training_bound(sum(lengths), machine, kl=kl)


def figures(turns: Sequence[Turn], *, memories: int, steps: int, bounds: Sequence[float] = ()) -> Figures:
    """Medians and minima of ``turns``, each of ``steps`` steps; ``bounds``: seconds of the bound of each step."""
    per_step = [turn.seconds / steps for turn in turns]
    middle, least = statistics.median(per_step), min(per_step)
    drawing = [turn.tokens / max(turn.seconds - turn.seconds_update, 1e-9) for turn in turns]
    updating = [turn.tokens / max(turn.seconds_update, 1e-9) for turn in turns]
    bound = statistics.median(bounds) if bounds else None
    return Figures(
        seconds_per_step=middle,
        seconds_per_step_min=least,
        seconds_per_memory_step=middle / memories,
        seconds_per_memory_step_min=least / memories,
        tokens_per_memory_step=statistics.median(turn.tokens / steps / memories for turn in turns),
        seconds_per_token=statistics.median(turn.seconds / turn.tokens for turn in turns),
        decode_tokens_per_s=statistics.median(drawing),
        train_tokens_per_s=statistics.median(updating),
        bound_seconds=bound,
        share_of_bound=None if bound is None else bound / middle,
    )
