"""One arm of the comparison in its own process: it trains memories, some steps whenever it is its turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elm_agent.bench.speed_bounds import Turn
from elm_agent.bench.speed_machine import ModelChoice, forget_peak, peak_bytes
from elm_agent.errors import InputError
from elm_agent.protocols import Trained, Trainer
from elm_agent.records import Recipe

TRL, TUNED, NATIVE = "trl", "trl-tuned", "native"
TUNED_BATCHES = 3  # micro-batches that are tried for the tuned arm: the group, a half, a quarter


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Who trains, and how many memories at the same time."""

    name: str
    trainer: str = NATIVE
    memories: int = 1
    micro_batch: int | None = None  # TRL: rows of one pass; None: the whole group


def arm_of(name: str) -> Arm:
    """``trl``, ``trl-tuned``, ``native`` or ``native-M``. Raises ``InputError`` for other names."""
    if name in (TRL, TUNED):
        return Arm(name=name, trainer=name)
    head, _, count = name.partition("-")
    if name == NATIVE or (head == NATIVE and count.isdecimal() and int(count) > 1 and count[0] != "0"):
        return Arm(name=name, memories=int(count or 1))
    raise InputError(f"arm {name!r}: expected trl, trl-tuned, native, native-M (M memories at once) or answers")


def micro_batches(rollouts: int) -> list[int]:
    """What the tuned arm tries: the whole group, then halves while they are whole."""
    sizes = [rollouts]
    while len(sizes) < TUNED_BATCHES and sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return sizes


class Gate:
    """Holds trainings after every step until it is their turn, and says when the last of them is through."""

    def __init__(self, memories: int) -> None:
        self._moved = threading.Condition()
        self._done = [0] * memories
        self._allowed = 0
        self._tokens = self._last = self._updates = 0.0
        self._failure: BaseException | None = None

    def hold(self, memory: int) -> None:
        """Wait until this memory may take another step."""
        with self._moved:
            self._moved.wait_for(lambda: self._done[memory] < self._allowed)

    def stepped(self, memory: int, detail: Mapping[str, Any]) -> None:
        with self._moved:
            self._done[memory] += 1
            self._last = time.perf_counter()
            self._tokens += detail["tokens"]
            self._updates += detail["seconds_update"]
            self._moved.notify_all()

    def fail(self, error: BaseException) -> None:
        with self._moved:
            self._failure = error
            self._moved.notify_all()

    def turn(self, steps: int) -> Turn:
        """Let every memory take so many steps. Raises what a training raised."""
        with self._moved:
            self._allowed += steps
            self._tokens = self._updates = 0.0
            started = time.perf_counter()
            self._moved.notify_all()
            self._moved.wait_for(lambda: self._failure or all(done >= self._allowed for done in self._done))
            if self._failure is not None:
                raise self._failure
            return Turn(seconds=self._last - started, seconds_update=self._updates, tokens=int(self._tokens))


class Training:
    """Memories in training on threads of this process, one for each, and the turns they take.

    The trainings are as long as ``turns`` turns of ``steps`` steps; what comes before the first turn is in no turn.
    """

    def __init__(
        self,
        *,
        model: ModelChoice,
        arm: Arm,
        question: str,
        recipe: Mapping[str, Any],
        turns: int,
        steps: int,
        ignore_end: bool,
    ) -> None:
        self._recipe = Recipe(**{**recipe, "steps": turns * steps, "trainer": _back_end(arm)})
        self._arm, self._question, self._steps = arm, question, steps
        self._trainer = _trainer(arm, model, self._recipe, ignore_end=ignore_end)
        self._gate = Gate(arm.memories)
        self._made: list[Trained | None] = [None] * arm.memories
        self._threads = [
            threading.Thread(target=self._train, args=(memory,), daemon=True) for memory in range(arm.memories)
        ]
        self._since = forget_peak()
        for thread in self._threads:
            thread.start()

    def turn(self) -> Turn:
        return self._gate.turn(self._steps)

    def peak(self) -> tuple[int, str]:
        """Most bytes so far, and since when they were counted."""
        return peak_bytes(), self._since

    def lengths(self) -> list[list[int]]:
        """After the last turn: for each step the tokens of every rollout of all memories."""
        for thread in self._threads:
            thread.join()
        made = [trained for trained in self._made if trained is not None]
        rollouts = [rollout for trained in made for rollout in trained.rollouts]
        return [[r.tokens for r in rollouts if r.step == step] for step in range(self._recipe.steps)]

    def _train(self, memory: int) -> None:
        def observe(name: str, detail: Mapping[str, Any]) -> None:
            if name == "train.step":
                self._gate.stepped(memory, detail)
                if detail["step"] + 1 < self._recipe.steps:
                    self._gate.hold(memory)

        try:
            self._gate.hold(memory)
            self._made[memory] = self._trainer.train(
                self._question, recipe=self._recipe, seed=memory, observe=observe, cancelled=lambda: False
            )
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the turn
            self._gate.fail(error)


def _back_end(arm: Arm) -> str:
    return "native" if arm.trainer == NATIVE else "trl"


def _trainer(arm: Arm, model: ModelChoice, recipe: Recipe, *, ignore_end: bool) -> Trainer:
    """The native trainer on the model as this library opens it, TRL on it as transformers does."""
    from elm_agent.models.engine import LocalModel
    from elm_agent.tasks import get_task
    from elm_agent.training import GrpoTrainer

    task = get_task("math")
    if arm.trainer == NATIVE:
        rows = max(64, arm.memories * recipe.rollouts)
        return GrpoTrainer(model.native(ignore_end=ignore_end, max_batch_rows=rows), task)
    from elm_agent.training.trl_trainer import TrlTrainer

    plain = model.plain()
    local = LocalModel(plain.model, plain.tokenizer, plain.fingerprint, ignore_end=ignore_end)
    return TrlTrainer(local, task, gradient_checkpointing=arm.trainer == TRL, micro_batch=arm.micro_batch)
