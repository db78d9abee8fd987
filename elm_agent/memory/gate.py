"""Admission: may a freshly trained memory serve, or is it only kept? Sees the curve, never a reference answer."""

from __future__ import annotations

from collections.abc import Sequence

from elm_agent.errors import TrainingError
from elm_agent.records import MemoryState, Recipe, StepRecord


def admit(curve: Sequence[StepRecord], recipe: Recipe) -> tuple[MemoryState, str | None]:
    """``active``, or ``candidate`` with the reason.

    Without an answer in any step nothing was voted on, so nothing was learnt; and a final vote share below
    ``recipe.min_vote_share`` means that the memory disagrees with itself.
    """
    if not curve:
        raise TrainingError("the trainer returned no step: expected a curve of at least one")
    if all(step.majority_answer is None for step in curve):
        return MemoryState.CANDIDATE, f"none of {len(curve)} steps produced an answer to vote on"
    final = curve[-1].vote_share
    if final < recipe.min_vote_share:
        return (
            MemoryState.CANDIDATE,
            f"final vote share {final:.3f} is below min_vote_share {recipe.min_vote_share:.3f}",
        )
    return MemoryState.ACTIVE, None
