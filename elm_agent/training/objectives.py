"""What a step learns from: which completions, what they are worth, and which way they pull the memory.

The training loop is the same for all. Pure choices; the mathematics is in ``numerics``, its gradient in ``update``.

grpo_majority      a group from the memory as it is; reward: the vote; clipped policy gradient. The paper's.
grpo_ground_truth  the same, but the reward is being right, by an answer that somebody gave. For studies alone.
sft_greedy         the paper's comparison, "SFT on greedy responses": one greedy completion of the bare model,
                   drawn once and imitated at every step. The paper says no more, so that the loss is the mean
                   cross-entropy per token with its end token at temperature 1, without a KL term, is our choice,
                   as is that whether the completion is right, finished or has an answer does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import torch

from elm_agent.errors import InputError
from elm_agent.models.decoding import Row
from elm_agent.models.network import Network, Prefix
from elm_agent.records import Recipe, StepRecord
from elm_agent.training import update
from elm_agent.training.update import Pull


class Pulling(Protocol):
    """See ``update.backward``."""

    def __call__(
        self,
        network: Network,
        prefix: Prefix,
        reference: Prefix | None,
        last_id: int,
        rows: Sequence[Row],
        advantages_G: torch.Tensor,
        recipe: Recipe,
        /,
        *,
        token_budget: int,
    ) -> Pull: ...


@dataclass(frozen=True, slots=True)
class Objective:
    """``pull`` puts a gradient on the memory, see ``update.backward``.

    ``imitates``: it learns from the bare model's greedy completion, not from a group of the memory's own.
    ``corrects``: its rewards come from a given answer, not from votes.
    """

    pull: Pulling
    imitates: bool = False
    corrects: bool = False


def _imitate(
    network: Network,
    prefix: Prefix,
    _reference: Prefix | None,
    last_id: int,
    rows: Sequence[Row],
    _advantages_G: torch.Tensor,
    _recipe: Recipe,
    *,
    token_budget: int,
) -> Pull:
    return update.imitate(network, prefix, last_id, rows, token_budget=token_budget)


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {
        "grpo_majority": Objective(update.backward),
        "grpo_ground_truth": Objective(update.backward, corrects=True),
        "sft_greedy": Objective(_imitate, imitates=True),
    }
)


def objective_of(recipe: Recipe) -> Objective:
    """Raises ``InputError`` for a name that is not known, or values that make no sense with it."""
    if recipe.objective not in OBJECTIVES:
        known = ", ".join(map(repr, OBJECTIVES))
        raise InputError(f"recipe: objective is {recipe.objective!r}; this trainer knows {known}")
    if recipe.contradiction is not None:
        raise InputError(f"recipe: {recipe.contradiction}")
    return OBJECTIVES[recipe.objective]


def settled(curve: Sequence[StepRecord], recipe: Recipe) -> bool:
    """Whether the votes of the last ``stop_when_settled`` steps leave nothing to learn (an approximation)."""
    last = curve[-recipe.stop_when_settled :]
    enough = 0 < recipe.stop_when_settled <= len(curve)
    return enough and all(record.vote_share >= recipe.settled_share for record in last)
