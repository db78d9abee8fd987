"""What a trainer refuses before its first step. Pure; knows recipes and the model's limits."""

from __future__ import annotations

from collections.abc import Mapping

from elm_agent.errors import InputError
from elm_agent.models.engine import LocalModel
from elm_agent.records import Recipe


def refuse_others(recipe: Recipe, known: Mapping[str, str], trainer: str = "this trainer") -> None:
    """Raise ``InputError`` for a recipe with another value than the one ``known`` to the trainer."""
    for name, value in known.items():
        if getattr(recipe, name) != value:
            raise InputError(f"recipe: {name} is {getattr(recipe, name)!r}; {trainer} knows {value!r}")


def refuse_too_long(recipe: Recipe, model: LocalModel, prompt_length: int) -> None:
    """Raise ``InputError`` for rollouts that would leave the model's context."""
    positions = recipe.virtual_tokens + prompt_length + recipe.max_new_tokens
    if positions > model.context_length:
        raise InputError(
            f"learning from this question takes {positions} positions ({recipe.virtual_tokens} soft, {prompt_length} "
            f"of the question, {recipe.max_new_tokens} new), more than the model's context of "
            f"{model.context_length}: lower `learning.max_new_tokens`"
        )
