"""Memories that were trained once in a run serve every method that would train the same one again.

What a memory becomes depends on the model, the task, the question, the recipe and the seed alone, so that reusing it
changes no result, only the time; what it cost stands in it, and every method that uses it states that.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from elm_agent.adapters import Kept, from_tensors
from elm_agent.bench.evidence.beside import Stop
from elm_agent.bench.evidence.clock import SharedClock
from elm_agent.errors import JobCancelled, StorageError, TrainingError
from elm_agent.protocols import LanguageModel, Observer, Task, Trained, Trainer
from elm_agent.records import MemoryKeys, Recipe, Rollout, StepRecord, digest_of

logger = logging.getLogger(__name__)

_MEMORY, _KEY = "memory.", "key."


class RememberedTrainer:
    """A ``Trainer`` that trains what is not in its folder.

    Args:
        owner: who trains here; ``owner_of`` says whose training a memory came from.
        observe: told ``prepare`` with how many of how many memories are there.
        clock, stop: of the run, in which others may train beside.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: Path,
        *,
        model: LanguageModel,
        task: Task,
        owner: str,
        observe: Observer = lambda _name, _detail: None,
        clock: SharedClock | None = None,
        stop: Stop | None = None,
    ) -> None:
        self._trainer = trainer
        self._folder = folder
        self._model = model
        self._task = task
        self._owner = owner
        self._observe = observe
        self._clock = clock or SharedClock()
        self._stop = stop or Stop()

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
            trained = read_trained(file, recipe, width=self._model.fingerprint.width)
            for step in trained.curve:
                observe("train.step", asdict(step))
        else:
            started = self._clock.read()  # whoever learns is counted as working there
            trained = self._trainer.train(question, recipe=recipe, seed=seed, observe=observe, cancelled=cancelled)
            trained = replace(trained, seconds=self._clock.read() - started)
            self._write(file, trained)
        return trained

    def owner_of(self, question: str, *, recipe: Recipe, seed: int) -> str:
        """Who trained the memory; the one here where nothing is kept of it."""
        file = self._file(question, recipe, seed)
        return str(_told(file)["owner"]) if file.exists() else self._owner

    def prepare(
        self, questions: Sequence[str], *, recipe: Recipe, seed_of: Callable[[str], int], together: int
    ) -> None:
        """Train what is not there yet, ``together`` at a time: rollouts of several memories are rows of one batch.

        Each is charged its share of the time. What fails is left to ``train``, which says why.
        """
        missing = [one for one in dict.fromkeys(questions) if not self._file(one, recipe, seed_of(one)).exists()]
        stop, told, done = threading.Event(), threading.Lock(), 0

        def stopped() -> bool:
            return stop.is_set() or bool(self._stop)

        def make(question: str) -> None:
            nonlocal done
            if stopped():
                return
            try:
                with self._clock.working():
                    started = self._clock.read()
                    trained = self._trainer.train(
                        question, recipe=recipe, seed=seed_of(question), observe=_silent, cancelled=stopped
                    )
                    share = self._clock.read() - started
            except JobCancelled:
                return
            except Exception as error:
                logger.warning("a memory could not be trained beside others: %s", error, exc_info=error)
            else:
                self._write(self._file(question, recipe, seed_of(question)), replace(trained, seconds=share))
            with told:
                done += 1
                self._observe("prepare", {"done": done, "total": len(missing)})

        if recipe.parameterisation == "full" or len(missing) < 2 or together < 2:
            return
        with ThreadPoolExecutor(together, thread_name_prefix="elm-evidence") as pool:
            try:
                for future in [pool.submit(make, question) for question in missing]:
                    future.result()
            finally:  # stopped: each one ends after its current step
                stop.set()

    def _file(self, question: str, recipe: Recipe, seed: int) -> Path:
        asked, told = self._task.messages(question), asdict(replace(recipe, min_vote_share=0.0))  # it only admits
        name = digest_of([self._model.fingerprint.id, self._task.name, asked, told, seed])
        return self._folder / f"{name.removeprefix('sha256:')[:40]}.safetensors"

    def _write(self, file: Path, trained: Trained) -> None:
        if trained.prompt.parameterisation != "full":  # a whole network is too large to be kept
            write_trained(file, trained, owner=self._owner)


def write_trained(file: Path, trained: Trained, *, owner: str) -> None:
    """Whole or not at all. Raises ``StorageError``."""
    tensors = {_MEMORY + name: tensor.contiguous() for name, tensor in trained.prompt.tensors.items()}
    keys = {"input": trained.keys.input, "kv": trained.keys.kv}
    tensors |= {_KEY + name: torch.tensor(key) for name, key in keys.items() if key is not None}
    told = {
        "owner": owner,
        "virtual_tokens": trained.prompt.virtual_tokens,
        "curve": [asdict(step) for step in trained.curve],
        "rollouts": [asdict(rollout) for rollout in trained.rollouts],
        "seed": trained.seed,
        "seconds": trained.seconds,
        "entropies": list(trained.entropies),
        "initial_norm": trained.initial_norm,
    }
    unfinished = file.with_suffix(".part")
    try:
        save_file(tensors, unfinished, metadata={"trained": json.dumps(told)})
        with unfinished.open("rb") as stream:
            os.fsync(stream.fileno())
        unfinished.replace(file)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"trained memory {file} cannot be written: {error}") from error


def read_trained(file: Path, recipe: Recipe, *, width: int) -> Trained:
    """What was trained. Raises ``TrainingError`` where the file is damaged."""
    told = _told(file)
    with safe_open(file, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
    prompt: Kept = from_tensors(
        {name.removeprefix(_MEMORY): one for name, one in tensors.items() if name.startswith(_MEMORY)},
        recipe=recipe,
        virtual_tokens=told["virtual_tokens"],
        width=width,
    )
    kv = tensors.get(f"{_KEY}kv")
    return Trained(
        prompt=prompt,
        keys=MemoryKeys(input=tensors[f"{_KEY}input"].numpy(), kv=None if kv is None else kv.numpy()),
        curve=tuple(StepRecord(**step) for step in told["curve"]),
        rollouts=tuple(Rollout(**rollout) for rollout in told["rollouts"]),
        seed=told["seed"],
        seconds=told["seconds"],
        entropies=tuple(told["entropies"]),
        initial_norm=told["initial_norm"],
    )


def _told(file: Path) -> dict[str, Any]:
    """What stands beside the tensors; the library checks on the way that they are all there."""
    try:
        with safe_open(file, "pt") as stored:
            told: dict[str, Any] = json.loads(stored.metadata()["trained"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"trained memory {file} cannot be read ({error}): remove it to train again") from error
    return told


def _silent(_name: str, _detail: dict[str, Any]) -> None:
    """Steps of several memories at once are told to nobody."""
