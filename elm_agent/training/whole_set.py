"""One memory or one network from a whole set of questions: the references TTRL and GRPO (arXiv 2606.17803, 4.1).

The step is that of ``grpo``; what differs is that each step has another question, and that all of them pull the same
parameters. For studies: an agent meets its questions one by one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial

import torch

from elm_agent.errors import InputError, JobCancelled
from elm_agent.protocols import Observer, Trained
from elm_agent.records import Recipe, Rollout, StepRecord
from elm_agent.training import numerics
from elm_agent.training.checks import keeping, refuse_diverged, refuse_unsound
from elm_agent.training.grpo import GrpoTrainer, _check, _pull, _timed_update
from elm_agent.training.judging import judge
from elm_agent.training.objectives import objective_of
from elm_agent.training.parameterisations import parameterisation_of


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

        A soft prompt or prefix begins as the first question.

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
        started = time.perf_counter()
        memory = parameterisation_of(recipe)(self.model, questions[0], recipe, seed)
        optimizer = torch.optim.AdamW(memory.parameters, lr=recipe.learning_rate, weight_decay=0.0)
        curve: list[StepRecord] = []
        rollouts: list[Rollout] = []
        with keeping(curve):
            for step, number in enumerate(set_order(len(questions), epochs=epochs, seed=seed)):
                if cancelled():
                    raise JobCancelled(f"stopped before step {step + 1} of {epochs * len(questions)}, as asked")
                text_ids, last_id = asked[number][:-1], asked[number][-1]
                truth = self._truth(questions[number]) if objective.corrects else None
                reference = self._reference(recipe, memory, text_ids)
                tick = time.perf_counter()
                prefix = self.model.compute(partial(memory.read, text_ids))
                rows = self._group(recipe, prefix, memory.embeds(text_ids), last_id, seed, step, None, cancelled)
                refuse_unsound(rows, step)
                seconds_rollout = time.perf_counter() - tick
                judged = judge(self.model, self.task, rows, step, truth=truth)
                advantages_G = numerics.group_advantages([rollout.reward for rollout in judged.rollouts])
                update = partial(
                    _pull, objective, memory, text_ids, prefix, reference, last_id, rows, advantages_G, recipe
                )
                pull, norm, seconds_update = self.model.compute(
                    partial(_timed_update, update, memory.parameters, optimizer, recipe.max_grad_norm)
                )
                refuse_diverged(memory.parameters, pull.loss, norm, step)
                record = judged.record(
                    **asdict(pull), grad_norm=norm, seconds_rollout=seconds_rollout, seconds_update=seconds_update
                )
                curve.append(record)
                rollouts.extend(judged.rollouts)
                observe("train.step", asdict(record))
        return Trained(
            prompt=memory.kept(),
            keys=memory.keys(),
            curve=tuple(curve),
            rollouts=tuple(rollouts),
            seed=seed,
            seconds=time.perf_counter() - started,
        )
