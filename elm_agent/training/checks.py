"""What a trainer refuses: recipes before its first step, numbers that are not finite at any. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from elm_agent.errors import InputError, TrainingError
from elm_agent.models.decoding import Row
from elm_agent.models.engine import LocalModel
from elm_agent.models.twins import why_no_twin
from elm_agent.records import EXACT, Recipe, StepRecord


def refuse_others(recipe: Recipe, known: Mapping[str, object], trainer: str = "this trainer") -> None:
    """Raise ``InputError`` for a recipe with another value than the one ``known`` to the trainer."""
    for name, value in known.items():
        if getattr(recipe, name) != value:
            raise InputError(f"recipe: {name} is {getattr(recipe, name)!r}; {trainer} knows {value!r}")


def refuse_too_long(recipe: Recipe, model: LocalModel, prompt_length: int) -> None:
    """Raise ``InputError`` for rollouts that would leave the model's context."""
    positions = recipe.positions + prompt_length + recipe.max_new_tokens
    if positions > model.context_length:
        raise InputError(
            f"learning from this question takes {positions} positions ({recipe.positions} soft, {prompt_length} "
            f"of the question, {recipe.max_new_tokens} new), more than the model's context of "
            f"{model.context_length}: lower `learning.max_new_tokens`"
        )


def refuse_unable(recipe: Recipe, model: LocalModel) -> None:
    """Raise ``InputError`` for rollouts that this model cannot draw in the way that the recipe asks for."""
    reasons = {"rollout_weights": why_no_twin(model.network), "rollout_drafts": model.network.why_slow}
    for name, why in reasons.items():
        if not model.draws_itself:
            why = "another engine draws the tokens of this model"
        if why is not None and getattr(recipe, name) != EXACT[name]:
            raise InputError(f"recipe: {name} is {getattr(recipe, name)!r}, but {why}: use {EXACT[name]!r}")


def refuse_unsound(rows: Sequence[Row], step: int) -> None:
    """Raise ``TrainingError`` for tokens drawn from logits that are not finite: votes on them mean nothing."""
    for index, row in enumerate(rows):
        for token, logprob in [*enumerate(row.logprobs), *enumerate(row.sampler_logprobs)]:
            if not math.isfinite(logprob):
                raise TrainingError(
                    f"step {step + 1}: the model's logits are not finite at token {token + 1} of rollout {index + 1} "
                    "(NaN or infinity): lower the learning rate, or load the model with `dtype` float32"
                )


def refuse_diverged(parameters: Sequence[torch.Tensor], loss: float, norm: float, step: int) -> None:
    """Raise ``TrainingError`` after an update that was not finite, or left a memory that is not."""
    finite = all(bool(torch.isfinite(parameter).all()) for parameter in parameters)
    if not (finite and math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingError(f"step {step + 1}: loss {loss}, gradient norm {norm}: lower the learning rate")


@contextmanager
def keeping(curve: Sequence[StepRecord]) -> Iterator[None]:
    """A training that fails says how far it had come: its ``TrainingError`` carries the steps of ``curve``."""
    try:
        yield
    except TrainingError as error:
        error.curve = tuple(curve)
        raise
