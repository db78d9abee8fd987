"""Process reward: a second model judges every step of a solution, and the steps are made one score."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from elm_agent.errors import ElmError, InputError, VerificationError
from elm_agent.records import Candidate, Verdict
from elm_agent.verification.verdicts import verdict

if TYPE_CHECKING:  # loading transformers takes seconds
    from elm_agent.models.prm import ProcessRewardModel

Aggregate = Literal["product", "min", "last"]
_AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "product": math.prod,
    "min": min,
    "last": lambda steps: steps[-1],
}


class ProcessReward:
    """Scores candidates with a model in the format of Qwen2.5-Math-PRM (METHOD section 3), all in one batch.

    ``aggregate``: product, min or last of the step probabilities; a score in [0, 1].
    """

    name = "prm"

    def __init__(self, model: ProcessRewardModel, *, aggregate: Aggregate = "product") -> None:
        if aggregate not in _AGGREGATES:
            raise InputError(f"unknown aggregate {aggregate!r}: expected product, min or last")
        self._model = model
        self._aggregate = aggregate

    def score(self, question: str, candidates: Sequence[Candidate]) -> list[Verdict]:
        """One verdict for each candidate, with its step probabilities.

        Raises:
            VerificationError: a solution is longer than the model reads, or a probability is not finite.
        """
        if not candidates:
            return []
        try:
            rows = [self._model.encode(question, split_steps(item.text)) for item in candidates]
            steps = self._model.step_probabilities(rows)
        except ElmError as error:
            raise VerificationError(f"the process reward model cannot judge this: {error}") from error
        return [
            verdict(aggregate(item, self._aggregate), verifier=self.name, steps=item, aggregate=self._aggregate)
            for item in steps
        ]


def split_steps(text: str) -> list[str]:
    """The steps of a solution: its parts between blank lines, without surrounding space; at least one."""
    return [step for part in re.split(r"\n[^\S\n]*\n", text) if (step := part.strip())] or [""]


def aggregate(steps: Sequence[float], how: Aggregate) -> float:
    """One score of at least one step probability."""
    return _AGGREGATES[how](steps)
