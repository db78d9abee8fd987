"""A memory in training: how it begins, its optimizer, what its steps have told. Knows not how a step is made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

import torch

from elm_agent.models.decoding import Row
from elm_agent.models.engine import LocalModel
from elm_agent.protocols import Observer, Trained
from elm_agent.records import Recipe, Rollout, StepRecord
from elm_agent.training import numerics
from elm_agent.training.objectives import objective_of
from elm_agent.training.parameterisations import parameterisation_of


class Course:
    """``memory`` begins as ``question``, or as another kind of memory does; nothing else is trained."""

    def __init__(self, model: LocalModel, question: str, *, recipe: Recipe, seed: int, observe: Observer) -> None:
        self._started = time.perf_counter()
        self._observe = observe
        self.recipe = recipe
        self.seed = seed
        self.memory = parameterisation_of(recipe)(model, question, recipe, seed)
        # Where the exact network draws with it.
        if model.draws_itself and recipe.rollout_weights == "exact" and not objective_of(recipe).imitates:
            model.compute(self.memory.prepare)
        self.optimizer = torch.optim.AdamW(self.memory.parameters, lr=recipe.learning_rate, weight_decay=0.0)
        self._initial_norm = numerics.norm_of(self.memory.parameters)
        self.curve: list[StepRecord] = []
        self._rollouts: list[Rollout] = []
        self._entropies: list[float] = []

    def note(self, record: StepRecord, rollouts: Sequence[Rollout], rows: Sequence[Row]) -> None:
        """Keep what a step has told, and tell it. ``rows``: how its rollouts were drawn."""
        self.curve.append(record)
        self._rollouts.extend(rollouts)
        if all(row.logprobs for row in rows):  # another engine does not say
            self._entropies.append(numerics.drawn_entropy([row.logprobs for row in rows]))
        self._observe("train.step", asdict(record))

    def trained(self) -> Trained:
        """The memory as it is now, with the whole trajectory."""
        return Trained(
            prompt=self.memory.kept(),
            keys=self.memory.keys(),
            curve=tuple(self.curve),
            rollouts=tuple(self._rollouts),
            seed=self.seed,
            seconds=time.perf_counter() - self._started,
            entropies=tuple(self._entropies),
            initial_norm=self._initial_norm,
        )
