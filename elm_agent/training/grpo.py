"""Training one memory: the algorithm of the paper, step by step (METHOD section 1).

Kept from GRPO: groups, clipping, the k3 KL term. Dropped: a critic, division by the group's standard deviation,
per-length division. Exact savings, because the base is frozen and the question is shared: its keys and values
are computed once per step (with gradient) and serve rollouts and update alike; logits are taken for completion
tokens only; the reference reads the bare question once per memory.
Knows nothing of stores, jobs or routes.
"""

from __future__ import annotations

import hashlib
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial

import torch

from elm_agent.errors import InputError, JobCancelled
from elm_agent.models.decoding import Row
from elm_agent.models.drafting import Drafts
from elm_agent.models.engine import LocalModel
from elm_agent.models.memory import out_of_memory, spare_bytes
from elm_agent.models.network import Network, Prefix
from elm_agent.models.serving import Start
from elm_agent.models.sparing import without_gates
from elm_agent.protocols import Observer, Task, Trained
from elm_agent.records import Recipe
from elm_agent.training import numerics
from elm_agent.training.checks import (
    keeping,
    refuse_diverged,
    refuse_others,
    refuse_too_long,
    refuse_unable,
    refuse_unsound,
)
from elm_agent.training.course import Course
from elm_agent.training.judging import judge
from elm_agent.training.objectives import Objective, objective_of, settled
from elm_agent.training.parameterisations import Learning
from elm_agent.training.update import CPU_TOKEN_BUDGET, TOKEN_BUDGET, Pull


class GrpoTrainer:
    """Distils one question into one soft prompt by GRPO with majority-vote rewards. A ``Trainer``.

    A recipe may name another objective or parameterisation of the paper, see the modules of these names. The model is
    held only while it computes. Memories that are trained at the same time, each on a thread, draw their rollouts as
    rows of one batch and update one after the other; their results do not depend on each other.

    Args:
        answers: reference answers by question, for studies with the objective ``grpo_ground_truth``; no other one
            looks at them.
    """

    def __init__(self, model: LocalModel, task: Task, *, answers: Mapping[str, str] | None = None) -> None:
        self.model = model
        self.task = task
        self.answers = dict(answers or {})

    def train(
        self,
        question: str,
        *,
        recipe: Recipe,
        seed: int,
        observe: Observer = lambda _name, _detail: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Trained:
        """See ``Trainer.train``. The trajectory is a function of (question, recipe, seed) and the model."""
        objective, prompt_ids = objective_of(recipe), self.model.encode(self.task.messages(question))
        _check(recipe, self.model, len(prompt_ids))
        truth = self._truth(question) if objective.corrects else None
        with self.model.berth(recipe.virtual_tokens + len(prompt_ids), cancelled):
            # 1. The memory begins as the question's own embeddings, or as another kind does; nothing else is trained.
            course = Course(self.model, question, recipe=recipe, seed=seed, observe=observe)
            reference = self._reference(recipe, course.memory, prompt_ids[:-1])
            target = self._greedy(recipe, prompt_ids, cancelled) if objective.imitates else None
            drafts = Drafts() if recipe.rollout_drafts else None
            with keeping(course.curve):
                for step in range(recipe.steps):
                    if cancelled():
                        raise JobCancelled(f"stopped before step {step + 1} of {recipe.steps}, as asked")
                    self._step(
                        course, prompt_ids, cancelled, reference=reference, truth=truth, target=target, drafts=drafts
                    )
                    if settled(course.curve, recipe):
                        break
            return course.trained()

    def _step(
        self,
        course: Course,
        prompt_ids: Sequence[int],
        cancelled: Callable[[], bool],
        *,
        reference: Prefix | None,
        truth: str | None,
        target: list[Row] | None = None,
        drafts: Drafts | None = None,
    ) -> None:
        """The course's next step, on one question. ``truth``: its answer, where that is the reward instead of votes.

        ``target``: what is imitated instead of a group that is drawn.
        """
        recipe, memory, step = course.recipe, course.memory, len(course.curve)
        text_ids, last_id = prompt_ids[:-1], prompt_ids[-1]
        # 2a. G completions from the current memory; or the one that is imitated.
        tick = time.perf_counter()
        prefix, start = self.model.compute(partial(read_question, memory, prompt_ids))
        rows = target or self._group(recipe, start, course.seed, step, drafts, cancelled)
        refuse_unsound(rows, step)
        seconds_rollout = time.perf_counter() - tick
        # 2b. Votes are the rewards: 1 for the most common answer's class, else 0; or the given answer's.
        judged = judge(self.model, self.task, rows, step, truth=truth)
        # 2c. Advantages against the group's mean.
        advantages_G = numerics.group_advantages([rollout.reward for rollout in judged.rollouts])
        # 2d, 2e. One clipped policy-gradient step on the memory alone.
        pull, norm, seconds_update = Pull(), 0.0, 0.0
        if bool(advantages_G.any()) or not recipe.skip_equal_rewards:
            update = partial(
                _pull, objective_of(recipe), memory, text_ids, prefix, reference, last_id, rows, advantages_G, recipe
            )
            pull, norm, seconds_update = self.model.compute(
                partial(_timed_update, update, memory.parameters, course.optimizer, recipe.max_grad_norm, cancelled)
            )
        refuse_diverged(memory.parameters, pull.loss, norm, step)
        # 3. The whole trajectory is kept.
        record = judged.record(
            **asdict(pull), grad_norm=norm, seconds_rollout=seconds_rollout, seconds_update=seconds_update
        )
        course.note(record, judged.rollouts, rows)

    def _truth(self, question: str) -> str:
        if question not in self.answers:
            raise InputError(
                f"objective 'grpo_ground_truth' needs the answer of {question[:80]!r}: give it as "
                "`GrpoTrainer(model, task, answers={question: answer})`; an agent has none and learns by votes"
            )
        return self.answers[question]

    def _reference(self, recipe: Recipe, memory: Learning, text_ids: Sequence[int]) -> Prefix | None:
        """What KL pulls towards, read once: the bare model's view of the question, or the initial memory's."""
        if recipe.beta == 0:
            return None
        initial = recipe.kl_reference == "initial" and not memory.begins_bare
        with torch.no_grad():
            read = memory.read if initial else self._bare
            return self.model.compute(partial(read, text_ids))[0]

    def _bare(self, text_ids: Sequence[int]) -> tuple[Prefix, torch.Tensor]:
        network = self.model.network
        return network.read([network.embed(text_ids)])

    def _greedy(self, recipe: Recipe, prompt_ids: Sequence[int], cancelled: Callable[[], bool]) -> list[Row]:
        """The bare model's most likely completion of the question: what is imitated."""
        with torch.no_grad():
            bare, logits_1V = self.model.compute(partial(self._bare, prompt_ids))
        start = Start(bare, logits_1V, self.model.network.embed(prompt_ids))
        return self.model.sample(start, [Row(max_new_tokens=recipe.max_new_tokens)], cancelled)

    def _group(
        self,
        recipe: Recipe,
        start: Start,
        seed: int,
        step: int,
        drafts: Drafts | None,
        cancelled: Callable[[], bool],
    ) -> list[Row]:
        if recipe.rollout_weights != "exact":
            start.prefix.network = self.model.twin(recipe.rollout_weights)  # it draws what follows
        return sample_group(self.model, start, recipe, seed=seed, step=step, cancelled=cancelled, drafts=drafts)


def rollout_seed(seed: int, step: int, index: int) -> int:
    """A 63-bit seed from (memory, step, rollout), so that results never depend on what trains beside it."""
    digest = hashlib.sha256(f"{seed}/{step}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@without_gates()
def read_question(memory: Learning, prompt_ids: Sequence[int]) -> tuple[Prefix, Start]:
    """The question as an update reads it, with gradient and without its last token, and what the group's rollouts
    begin with: all of it, without gradient."""
    network, embeds_TE = memory.network, memory.embeds(prompt_ids)
    whole_TE = None if embeds_TE is None else embeds_TE.detach()
    if network.why_slow is None:  # both by one pass: what a position has read does not change with those after it
        whole, logits_1V = memory.read(prompt_ids)
        return whole.cut(1), Start(whole.shared(1, detach=True), logits_1V.detach(), whole_TE)
    prefix, _ = memory.read(prompt_ids[:-1])
    read, last_11 = prefix.shared(1, detach=True), torch.tensor([prompt_ids[-1:]], device=network.device)
    with torch.no_grad():
        return prefix, Start(read, network.extend(read, last_11)[:, -1], whole_TE)


def sample_group(
    model: LocalModel,
    start: Start,
    recipe: Recipe,
    *,
    seed: int,
    step: int,
    cancelled: Callable[[], bool],
    drafts: Drafts | None = None,
) -> list[Row]:
    """G sampled completions, drawn beside whatever else the model is drawing. They are guessed by ``drafts``, and
    added to them."""
    rows = [
        Row(
            max_new_tokens=recipe.max_new_tokens,
            temperature=recipe.temperature,
            seed=rollout_seed(seed, step, index),
            drafts=drafts,
        )
        for index in range(recipe.rollouts)
    ]
    drawn = model.sample(start, rows, cancelled)
    if drafts is not None:
        for row in drawn:
            drafts.add(row.tokens)
    return drawn


def _pull(
    objective: Objective,
    memory: Learning,
    text_ids: Sequence[int],
    prefix: Prefix,
    reference: Prefix | None,
    last_id: int,
    rows: Sequence[Row],
    advantages_G: torch.Tensor,
    recipe: Recipe,
) -> Pull:
    """``objective.pull`` in micro-batches for which there is room, and where memory runs out all the same, again in
    smaller ones: the sum is the same.

    Where a single row takes too much, its layers are computed twice instead of being kept.
    """
    network, longest = memory.network, max(len(row.tokens) for row in rows)
    usual = CPU_TOKEN_BUDGET if network.device.type == "cpu" else TOKEN_BUDGET
    fitting = fitting_rows(network, prefix, longest)
    budget, sparing = min(usual, longest * min(len(rows), fitting)), fitting == 0 and network.why_slow is None
    while True:
        try:
            with network.sparing() if sparing else nullcontext():
                return objective.pull(
                    network, prefix, reference, last_id, rows, advantages_G, recipe, token_budget=budget
                )
        except RuntimeError as error:
            at_end = sparing or (budget <= longest and network.why_slow is not None)
            if at_end or not out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold the tensors of the attempt
        sparing = budget <= longest
        for parameter in memory.parameters:
            parameter.grad = None
        with without_gates():
            prefix, budget = memory.read(text_ids)[0], budget // 2


def fitting_rows(network: Network, prefix: Prefix, longest: int) -> int:
    """How many completions of so many tokens after ``prefix`` half of the spare memory can keep for their gradient.

    ``sys.maxsize`` where the system does not say what is spare. An upper bound of what they need: rows that begin
    alike are read as one there. To be held.
    """
    spare = spare_bytes(network.device)
    if spare is None:
        return sys.maxsize
    per_position, per_prompt_position = network.gradient_bytes
    return spare // 2 // max(1, longest * per_position + prefix.mask_BL.shape[1] * per_prompt_position)


def _timed_update(
    pull: Callable[[], Pull],
    parameters: Sequence[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    cancelled: Callable[[], bool],
) -> tuple[Pull, float, float]:
    """What pulled, the gradient's norm, and the seconds it took."""
    if cancelled():  # it may have waited for the updates of many others
        raise JobCancelled("stopped before an update, as asked")
    tick = time.perf_counter()
    pulled = pull()
    norm = descend(parameters, optimizer, max_norm)
    return pulled, norm, time.perf_counter() - tick


def descend(parameters: Sequence[torch.Tensor], optimizer: torch.optim.Optimizer, max_norm: float) -> float:
    """Clip the gradient, take one optimizer step, clear the gradient. Returns the norm before clipping."""
    for parameter in parameters:
        if parameter.grad is None:  # nothing pulled; the optimizer still steps with its momentum
            parameter.grad = torch.zeros_like(parameter)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _check(recipe: Recipe, model: LocalModel, prompt_length: int) -> None:
    """Raise ``InputError`` for what this trainer cannot do, or could do and not keep: before the first step."""
    refuse_others(recipe, {"trainer": "native", "kv_heads": model.kv_heads})
    refuse_unable(recipe, model)
    refuse_too_long(recipe, model, prompt_length)
