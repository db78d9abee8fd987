"""Memories that were trained once in a run serve every method that would train the same one again.

What a memory becomes depends on the model, the task, the question, the recipe and the seed alone, so that reusing it
changes no result, only the time; what it cost stands in it, and every method that uses it states that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from elm_agent.adapters import Kept, from_tensors
from elm_agent.errors import StorageError, TrainingError
from elm_agent.protocols import LanguageModel, Observer, Task, Trained, Trainer
from elm_agent.records import MemoryKeys, Recipe, Rollout, StepRecord, digest_of, question_digest

_MEMORY, _KEY = "memory.", "key."


class RememberedTrainer:
    """A ``Trainer`` that trains what is not in its folder.

    Args:
        owner: who trains here; ``owners`` says of each question whose training its memory came from.
    """

    def __init__(self, trainer: Trainer, folder: Path, *, model: LanguageModel, task: Task, owner: str) -> None:
        self._trainer = trainer
        self._folder = folder
        self._model = model
        self._task = task
        self._owner = owner
        self.owners: dict[str, str] = {}  # by question digest

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
        file = self._file(question, recipe, seed)
        if file.exists():
            trained, owner = self._read(file, recipe)
            for step in trained.curve:
                observe("train.step", asdict(step))
        else:
            trained = self._trainer.train(question, recipe=recipe, seed=seed, observe=observe, cancelled=cancelled)
            self._write(file, trained)
            owner = self._owner
        self.owners[question_digest(question)] = owner
        return trained

    def _file(self, question: str, recipe: Recipe, seed: int) -> Path:
        asked = self._task.messages(question)
        name = digest_of([self._model.fingerprint.id, self._task.name, asked, asdict(recipe), seed])
        return self._folder / f"{name.removeprefix('sha256:')[:40]}.safetensors"

    def _write(self, file: Path, trained: Trained) -> None:
        """Whole or not at all."""
        if recipe_keeps_nothing(trained):
            return
        tensors = {_MEMORY + name: tensor.contiguous() for name, tensor in trained.prompt.tensors.items()}
        keys = {"input": trained.keys.input, "kv": trained.keys.kv}
        tensors |= {_KEY + name: torch.tensor(key) for name, key in keys.items() if key is not None}
        told = {
            "owner": self._owner,
            "virtual_tokens": trained.prompt.virtual_tokens,
            "curve": [asdict(step) for step in trained.curve],
            "rollouts": [asdict(rollout) for rollout in trained.rollouts],
            "seed": trained.seed,
            "seconds": trained.seconds,
        }
        unfinished = file.with_suffix(".part")
        try:
            save_file(tensors, unfinished, metadata={"trained": json.dumps(told)})
            with unfinished.open("rb") as stream:
                os.fsync(stream.fileno())
            unfinished.replace(file)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"trained memory {file} cannot be written: {error}") from error

    def _read(self, file: Path, recipe: Recipe) -> tuple[Trained, str]:
        try:
            with safe_open(file, "pt") as stored:
                told: dict[str, Any] = json.loads(stored.metadata()["trained"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise TrainingError(
                f"trained memory {file} cannot be read ({error}): remove it to train again"
            ) from error
        prompt: Kept = from_tensors(
            {name.removeprefix(_MEMORY): one for name, one in tensors.items() if name.startswith(_MEMORY)},
            recipe=recipe,
            virtual_tokens=told["virtual_tokens"],
            width=self._model.fingerprint.width,
        )
        kv = tensors.get(f"{_KEY}kv")
        trained = Trained(
            prompt=prompt,
            keys=MemoryKeys(input=tensors[f"{_KEY}input"].numpy(), kv=None if kv is None else kv.numpy()),
            curve=tuple(StepRecord(**step) for step in told["curve"]),
            rollouts=tuple(Rollout(**rollout) for rollout in told["rollouts"]),
            seed=told["seed"],
            seconds=told["seconds"],
        )
        return trained, str(told["owner"])


def recipe_keeps_nothing(trained: Trained) -> bool:
    """A whole network is too large to be kept."""
    return trained.prompt.parameterisation == "full"
