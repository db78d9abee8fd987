"""One memory or one network from a whole set of questions: the references TTRL and GRPO (arXiv 2606.17803, 4.1).

The step is that of ``grpo``; what differs is that each step has another question, and that all of them pull the same
parameters. For studies: an agent meets its questions one by one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from elm_agent.errors import InputError, JobCancelled
from elm_agent.protocols import Observer, Trained
from elm_agent.records import Recipe
from elm_agent.training.checks import keeping
from elm_agent.training.course import Course
from elm_agent.training.grpo import GrpoTrainer, _check
from elm_agent.training.objectives import objective_of


def set_order(count: int, *, epochs: int, seed: int) -> Iterator[int]:
    """Which of ``count`` questions each step has: every epoch all of them, in an order of its own."""
    for epoch in range(epochs):
        yield from random.Random(f"epoch/{seed}/{epoch}").sample(range(count), count)


class SetTrainer(GrpoTrainer):
    """``GrpoTrainer`` for sets: ``answers`` are needed for the objective ``grpo_ground_truth`` alone."""

    def train_set(
        self,
        questions: Sequence[str],
        *,
        recipe: Recipe,
        seed: int,
        epochs: int,
        observe: Observer = lambda _name, _detail: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Trained:
        """``epochs`` steps on each question, one group a step; ``recipe.steps`` does not count.

        A soft prompt or prefix begins as the first question. It never ends early, for settled votes on some questions
        (``stop_when_settled``) tell nothing of the others. Nothing is guessed (``rollout_drafts``), which would be no
        other rollouts: those of a whole set are too many to be kept for it.

        Raises:
            InputError: no question, one that does not fit, or a recipe that has no meaning for a set.
            JobCancelled, TrainingError: see ``Trainer.train``.
        """
        objective = objective_of(recipe)
        if not questions or objective.imitates or (recipe.beta > 0 and recipe.kl_reference == "initial"):
            raise InputError("a set is learned by rewards, from at least one question, with the KL reference 'base'")
        asked = [self.model.encode(self.task.messages(question)) for question in questions]
        for ids in asked:
            _check(recipe, self.model, len(ids))
        course = Course(self.model, questions[0], recipe=recipe, seed=seed, observe=observe)
        with keeping(course.curve):
            for step, number in enumerate(set_order(len(questions), epochs=epochs, seed=seed)):
                if cancelled():
                    raise JobCancelled(f"stopped before step {step + 1} of {epochs * len(questions)}, as asked")
                truth = self._truth(questions[number]) if objective.corrects else None
                reference = self._reference(recipe, course.memory, asked[number][:-1])
                self._step(course, asked[number], cancelled, reference=reference, truth=truth)
        return course.trained()
