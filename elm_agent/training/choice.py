"""The trainer that a recipe names: jobs of several recipes may wait in one queue. TRL is imported on demand."""

from __future__ import annotations

from collections.abc import Callable

from elm_agent.errors import InputError
from elm_agent.models.engine import LocalModel
from elm_agent.protocols import Observer, Task, Trained, Trainer
from elm_agent.records import Recipe
from elm_agent.training.grpo import GrpoTrainer


class RecipeTrainer:
    """A ``Trainer`` that hands each question to the back end of its recipe."""

    def __init__(self, model: LocalModel, task: Task) -> None:
        self.model = model
        self.task = task

    def named(self, name: str) -> Trainer:
        """The back end of that name. Raises ``SettingsError`` when its packages are missing."""
        if name == "native":
            return GrpoTrainer(self.model, self.task)
        if name == "trl":
            from elm_agent.training.trl_trainer import TrlTrainer

            return TrlTrainer(self.model, self.task)
        raise InputError(f"recipe: trainer is {name!r}; this library knows 'native' and 'trl'")

    def train(
        self,
        question: str,
        *,
        recipe: Recipe,
        seed: int,
        observe: Observer = lambda _name, _detail: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Trained:
        """See ``Trainer.train``."""
        return self.named(recipe.trainer).train(
            question, recipe=recipe, seed=seed, observe=observe, cancelled=cancelled
        )
