"""One soft prompt that does what several memories did: it learns what its teachers would write, token by token.

The teacher of a question is the frozen model with that question's own memory, of whatever kind. It writes its greedy
answer once; at every token of it the student, the same model with one prompt for all questions, is pulled towards the
teacher's whole distribution. Loss: the mean over all teachers' tokens of KL(teacher || student), in nats, at
temperature 1 (distillation, arXiv 1503.02531; of what stands before a question, arXiv 2209.15189). No answer is
judged and nothing is voted on. Knows nothing of banks, of what is near what, or of probes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

from elm_agent.adapters import Kept
from elm_agent.errors import InputError, JobCancelled, TaskError
from elm_agent.models.engine import LocalModel
from elm_agent.models.network import Network, Prefix
from elm_agent.models.reading import Reader
from elm_agent.models.sparing import without_gates
from elm_agent.protocols import GenerationRequest, Observer, Task, Trained
from elm_agent.records import DISTILLED, Generation, Recipe, Rollout, StepRecord
from elm_agent.softprompt import SoftPrompt
from elm_agent.training import numerics
from elm_agent.training.checks import keeping, refuse_diverged, refuse_too_long
from elm_agent.training.grpo import descend
from elm_agent.training.parameterisations import LearningPrompt


@dataclass(frozen=True, slots=True)
class Lesson:
    """A question, and the memory that its teacher reads before it."""

    question: str
    memory: Kept


@dataclass(frozen=True, slots=True)
class Taught:
    """What one teacher gives: its prompt without the last token, that token, what it wrote, and what it has read."""

    text_ids: tuple[int, ...]
    last_id: int
    tokens: tuple[int, ...]
    prefix: Prefix


class Distiller:
    """Trains the student. The model is held only while it computes, question by question, so answers go between."""

    def __init__(self, model: LocalModel, task: Task) -> None:
        self.model = model
        self.task = task

    def distil(
        self,
        lessons: Sequence[Lesson],
        *,
        initial: SoftPrompt,
        recipe: Recipe,
        observe: Observer = lambda _name, _detail: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Trained:
        """``recipe.steps`` steps of AdamW from ``initial``, each on every lesson; no chance is in it.

        Of a step's record ``loss`` and ``kl`` are the loss before the step, and ``vote_share`` the share of the
        teachers' tokens that the student would write as well. The teachers' answers are the rollouts.

        Raises:
            InputError: no lesson, another objective or parameterisation, or a question that does not fit.
            JobCancelled: ``cancelled()`` became true between two questions.
            TrainingError: a loss or the prompt stopped being finite; its ``curve`` has the steps before.
            ModelMismatch: a memory of another model.
        """
        _check(lessons, initial, recipe)
        started = time.perf_counter()
        asked = [self.model.encode(self.task.messages(lesson.question)) for lesson in lessons]
        for ids in asked:
            refuse_too_long(recipe, self.model, len(ids))
        _refuse_cancelled(cancelled, 0, recipe)
        written = self.model.generate(
            [
                GenerationRequest(prompt_ids=ids, prefix=lesson.memory, max_new_tokens=recipe.max_new_tokens)
                for ids, lesson in zip(asked, lessons, strict=True)
            ]
        )
        taught = [
            self._taught(ids, lesson, generation)
            for ids, lesson, generation in zip(asked, lessons, written, strict=True)
        ]
        student = LearningPrompt(self.model, lessons[0].question, recipe, seed=0)
        with torch.no_grad():
            student.prompt_VE.copy_(initial.prompt_VE)
        optimizer = torch.optim.AdamW(student.parameters, lr=recipe.learning_rate, weight_decay=0.0)
        initial_norm = numerics.norm_of(student.parameters)
        curve: list[StepRecord] = []
        with keeping(curve):
            for step in range(recipe.steps):
                curve.append(self._step(step, student, taught, optimizer, recipe, cancelled))
                observe("distil.step", asdict(curve[-1]))
        return Trained(
            prompt=student.kept(),
            keys=student.keys(),
            curve=tuple(curve),
            rollouts=tuple(self._rollout(index, generation) for index, generation in enumerate(written)),
            seed=0,
            seconds=time.perf_counter() - started,
            initial_norm=initial_norm,
        )

    def _taught(self, ids: Sequence[int], lesson: Lesson, generation: Generation) -> Taught:
        """The teacher reads its question once; what it thinks of its own tokens is asked at each step."""
        text_ids = tuple(ids[:-1])
        with torch.no_grad():
            prefix = self.model.compute(partial(read_with, self.model.network, lesson.memory, text_ids))
        return Taught(text_ids, ids[-1], generation.token_ids, prefix)

    def _step(
        self,
        step: int,
        student: LearningPrompt,
        taught: Sequence[Taught],
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        cancelled: Callable[[], bool],
    ) -> StepRecord:
        tick = time.perf_counter()
        tokens = sum(len(one.tokens) for one in taught)
        loss, alike = 0.0, 0
        for one in taught:
            _refuse_cancelled(cancelled, step, recipe)
            share, same = self.model.compute(partial(pull, student, one, tokens=tokens))
            loss, alike = loss + share, alike + same
        norm = self.model.compute(partial(descend, student.parameters, optimizer, recipe.max_grad_norm))
        refuse_diverged(student.parameters, loss, norm, step)
        return StepRecord(
            step=step,
            majority_answer=None,
            vote_share=alike / tokens,
            reward_mean=alike / tokens,
            loss=loss,
            kl=loss,
            grad_norm=norm,
            clip_fraction=0.0,
            tokens=tokens,
            finished_share=0.0,
            seconds_rollout=0.0,
            seconds_update=time.perf_counter() - tick,
        )

    def _rollout(self, index: int, generation: Generation) -> Rollout:
        answer = failure = None
        try:
            answer = self.task.extract(generation.text)
        except TaskError as error:  # it is a record alone: nothing is learned from the answer
            failure = str(error)
        return Rollout(
            step=0,
            index=index,
            seed=0,
            text=generation.text,
            answer=answer,
            reward=None if failure else 1.0,
            tokens=len(generation.token_ids),
            finished=generation.finished,
            failure=failure,
        )


def read_with(network: Network, memory: Kept, text_ids: Sequence[int]) -> Prefix:
    """One row: a memory of any kind, and then these tokens. The model is to be held."""
    embeds_TE = network.embed(text_ids)
    if isinstance(memory, SoftPrompt):
        embeds_TE = torch.cat([memory.prompt_VE.to(embeds_TE), embeds_TE])
    request = GenerationRequest(prompt_ids=tuple(text_ids), prefix=memory, max_new_tokens=1)
    return Reader(network).read([request], lambda _request: embeds_TE)[1]


@without_gates()
def pull(student: LearningPrompt, one: Taught, *, tokens: int) -> tuple[float, int]:
    """Put the gradient of one question's share of the loss on the student; that share, and how many tokens agree.

    ``tokens``: of all teachers' answers together; the shares add up to the loss. The model is to be held.
    """
    network = student.network
    with torch.no_grad():
        teacher_TV = logits_of(network, one.prefix, one)
    student_TV = logits_of(network, student.read(one.text_ids)[0], one)
    loss = numerics.kl_divergence(teacher_TV, student_TV).sum() / tokens
    torch.autograd.backward(loss)
    written_T = torch.tensor(one.tokens, device=student_TV.device)
    return float(loss.detach()), int((student_TV.detach().argmax(-1) == written_T).sum())


def logits_of(network: Network, prefix: Prefix, one: Taught) -> torch.Tensor:
    """Logits (T, vocabulary) at each of the teacher's tokens, after the row in ``prefix``, which is left alone."""
    inputs_1T = torch.tensor([[one.last_id, *one.tokens[:-1]]], device=network.device)
    return network.extend(prefix.shared(1), inputs_1T)[0]


def _check(lessons: Sequence[Lesson], initial: SoftPrompt, recipe: Recipe) -> None:
    if not lessons:
        raise InputError("nothing to distil: expected at least one question with its memory")
    if (recipe.objective, recipe.parameterisation) != (DISTILLED, "soft_prompt"):
        raise InputError(
            f"recipe: objective {recipe.objective!r} of a {recipe.parameterisation!r}; distilling makes a "
            f"'soft_prompt' with the objective {DISTILLED!r}"
        )
    if recipe.virtual_tokens != initial.virtual_tokens:
        raise InputError(
            f"recipe: virtual_tokens is {recipe.virtual_tokens}, the prompt to begin with has "
            f"{initial.virtual_tokens}"
        )


def _refuse_cancelled(cancelled: Callable[[], bool], step: int, recipe: Recipe) -> None:
    if cancelled():
        raise JobCancelled(f"stopped after {step} of {recipe.steps} steps, as asked")
