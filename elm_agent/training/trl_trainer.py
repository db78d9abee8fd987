"""Training one memory with TRL and PEFT: the reference back end, slower, and judged by the same tests.

Same recipe, votes and records as the native trainer; the loop, the loss and the sampling are TRL's. Knows what
of a recipe TRL would do otherwise and refuses it; ``trl_run`` speaks to TRL.
"""

from __future__ import annotations

import importlib.util
import logging
import random
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import torch

from elm_agent.errors import InputError, JobCancelled, SettingsError
from elm_agent.models.decoding import Row
from elm_agent.models.engine import LocalModel
from elm_agent.models.lending import Loan
from elm_agent.models.quiet import quiet
from elm_agent.protocols import Observer, Task, Trained
from elm_agent.records import EXACT, Recipe, Rollout, StepRecord
from elm_agent.softprompt import SoftPrompt
from elm_agent.training import numerics
from elm_agent.training.checks import keeping, refuse_diverged, refuse_others, refuse_too_long
from elm_agent.training.grpo import rollout_seed
from elm_agent.training.judging import Judged, judge

PACKAGES = ("trl", "peft", "datasets")
_ONE_AT_A_TIME = threading.Lock()  # TRL keeps its device, precision and random state in the process


class TrlTrainer:
    """Distils one question into one soft prompt with TRL's GRPOTrainer. A ``Trainer``.

    A trajectory is a function of (question, recipe, seed), the model and the versions of torch and transformers:
    a step's group is drawn from one stream, whose seed every rollout of the step carries.

    Args:
        gradient_checkpointing: TRL's own default, for comparisons; costs time and saves memory, and puts the model
            into training mode: models with dropout are refused.
        micro_batch: rows of one backward pass, a divisor of the group; None: the whole group.

    Raises:
        SettingsError: a package is missing.
    """

    def __init__(
        self, model: LocalModel, task: Task, *, gradient_checkpointing: bool = False, micro_batch: int | None = None
    ) -> None:
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise SettingsError(f"trainer 'trl' needs {', '.join(missing)}: run `pip install 'elm-agent[trl]'`")
        self.model = model
        self.task = task
        self.gradient_checkpointing = gradient_checkpointing
        self.micro_batch = micro_batch

    def train(
        self,
        question: str,
        *,
        recipe: Recipe,
        seed: int,
        observe: Observer = lambda _name, _detail: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Trained:
        """See ``Trainer.train``. The base model is afterwards what it was, however this ends."""
        prompt_ids = self.model.encode(self.task.messages(question))
        _check(recipe, self.model, len(prompt_ids), self.micro_batch, self.gradient_checkpointing)
        started = time.perf_counter()
        initial_VE = numerics.initial_prompt(self.model.text_embeddings(question), recipe.virtual_tokens)
        with _alone(cancelled, recipe), _quietly(), _own_randomness(self.model), Loan(self.model) as loan:
            from elm_agent.training.trl_run import GroupRun, refuse_wrapped

            refuse_wrapped(self.model.network.model)
            course = _Course(self.model, self.task, recipe, seed, loan, observe, cancelled)
            course.check_cancelled()
            with tempfile.TemporaryDirectory() as folder:
                run = GroupRun(
                    self.model.network.model,
                    self.model.tokenizer,
                    prompt_ids=prompt_ids,
                    initial_VE=initial_VE,
                    end_ids=self.model.end_ids,
                    recipe=recipe,
                    seed_of=course.seed_of,
                    rewards=course.rewards,
                    stepped=lambda logs: course.stepped(logs, run.prompt_VE, run.seconds_rollout),
                    folder=folder,
                    gradient_checkpointing=self.gradient_checkpointing,
                    micro_batch=self.micro_batch,
                )
                course.began = time.perf_counter()
                with keeping(course.curve):
                    run.train()
            prompt = SoftPrompt(run.prompt_VE.detach().to("cpu", torch.float32).clone())
        return Trained(
            prompt=prompt,
            keys=self.model.keys(prompt),
            curve=tuple(course.curve),
            rollouts=tuple(course.rollouts),
            seed=seed,
            seconds=time.perf_counter() - started,
        )


class _Course:
    """What TRL asks and tells in the course of one training, turned into our records."""

    def __init__(
        self,
        model: LocalModel,
        task: Task,
        recipe: Recipe,
        seed: int,
        loan: Loan,
        observe: Observer,
        cancelled: Callable[[], bool],
    ) -> None:
        self._model, self._task, self._recipe, self._seed = model, task, recipe, seed
        self._loan, self._observe, self._cancelled = loan, observe, cancelled
        self.curve: list[StepRecord] = []
        self.rollouts: list[Rollout] = []
        self._judged: Judged | None = None
        self.began = 0.0

    def seed_of(self, step: int) -> int:
        return rollout_seed(self._seed, step, 0)

    def check_cancelled(self, where: str = "before") -> None:
        if self._cancelled():
            raise JobCancelled(f"stopped {where} step {len(self.curve) + 1} of {self._recipe.steps}, as asked")

    def rewards(self, completions: list[list[int]]) -> list[float | None]:
        """Votes on a group's completions; answers have the model meanwhile."""
        step, ends = len(self.curve), set(self._model.end_ids)
        rows = [
            Row(
                max_new_tokens=self._recipe.max_new_tokens,
                temperature=self._recipe.temperature,
                seed=self.seed_of(step),
                tokens=tokens,
                finished=tokens[-1] in ends,
            )
            for tokens in completions
        ]
        with self._loan.pause():
            self.check_cancelled("within")
            self._judged = judge(self._model, self._task, rows, step)
        return [rollout.reward for rollout in self._judged.rollouts]

    def stepped(self, logs: dict[str, float], prompt_VE: torch.Tensor, seconds_rollout: float) -> None:
        """One optimizer step is done: keep its record, then let answers in and see whether to go on."""
        assert self._judged is not None  # rewards come before the step
        loss, norm = logs["loss"], logs["grad_norm"]
        refuse_diverged([prompt_VE], loss, norm, len(self.curve))
        record = self._judged.record(
            loss=loss,
            kl=logs.get("kl") or 0.0,
            grad_norm=norm,
            clip_fraction=logs["clip_ratio/region_mean"],
            seconds_rollout=seconds_rollout,
            seconds_update=time.perf_counter() - self.began - seconds_rollout,
        )
        self.curve.append(record)
        self.rollouts.extend(self._judged.rollouts)
        with self._loan.pause():
            self._observe("train.step", asdict(record))
            if len(self.curve) < self._recipe.steps:
                self.check_cancelled()
        self.began = time.perf_counter()


def _check(
    recipe: Recipe, model: LocalModel, prompt_length: int, micro_batch: int | None, gradient_checkpointing: bool
) -> None:
    """Raise ``InputError`` for what TRL cannot do or would silently do otherwise: before the first step."""
    known = {
        "trainer": "trl",
        "parameterisation": "soft_prompt",
        "objective": "grpo_majority",
        **EXACT,
        "kl_reference": "base",  # with a fresh adapter TRL's reference is the bare model, whatever one wishes
        "kv_heads": model.kv_heads,
    }
    refuse_others(recipe, known, "trainer 'trl'")
    refuse_too_long(recipe, model, prompt_length)
    if micro_batch is not None and (micro_batch < 1 or recipe.rollouts % micro_batch):
        raise InputError(
            f"micro_batch is {micro_batch}: expected a divisor of the group's {recipe.rollouts} rollouts"
        )
    if gradient_checkpointing and (rate := _dropout(model.network.model)):
        raise InputError(
            f"gradient_checkpointing puts the model into training mode, and it has dropout {rate:g}: leave it off"
        )


def _dropout(network: torch.nn.Module) -> float:
    rates = [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)]
    return max([*rates, *(float(getattr(module, "attention_dropout", 0.0)) for module in network.modules())])


@contextmanager
def _alone(cancelled: Callable[[], bool], recipe: Recipe) -> Iterator[None]:
    while not _ONE_AT_A_TIME.acquire(timeout=0.2):
        if cancelled():
            raise JobCancelled(f"stopped before step 1 of {recipe.steps}, as asked")
    try:
        yield
    finally:
        _ONE_AT_A_TIME.release()


@contextmanager
def _quietly() -> Iterator[None]:
    """Their remarks stay off the terminal; errors are raised anyway."""
    loggers = [logging.getLogger(name) for name in (*PACKAGES, "accelerate")]
    levels = [logger.level for logger in loggers]
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=rf"({'|'.join(PACKAGES)}|accelerate|transformers)\.")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _own_randomness(model: LocalModel) -> Iterator[None]:
    """TRL seeds every generator of the process; afterwards they are where the application had them."""
    plain, numpy = random.getstate(), np.random.get_state()
    devices = [model.network.device] if model.network.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numpy)
