"""One arm of the comparison in its own process: it trains memories, some steps whenever it is its turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from elm_agent.bench.speed_bounds import Turn
from elm_agent.bench.speed_machine import ModelChoice, forget_peak, peak_bytes
from elm_agent.errors import InputError
from elm_agent.protocols import Message, Task, Trained, Trainer
from elm_agent.records import Recipe

if TYPE_CHECKING:
    import torch

    from elm_agent.models.engine import LocalModel

TRL, TUNED, NATIVE = "trl", "trl-tuned", "native"
_Value = TypeVar("_Value")
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

    def stepped(self, memory: int, *, tokens: int, seconds_update: float) -> None:
        with self._moved:
            self._done[memory] += 1
            self._last = time.perf_counter()
            self._tokens += tokens
            self._updates += seconds_update
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

    The first of these threads opens the model: TRL, which computes on the thread that calls it, is then on the one
    that opened, as in a program of its own; a second one would have a second pool of OpenMP threads, and be slower.
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
        self._open_model = partial(_open, arm, model, self._recipe, ignore_end=ignore_end)
        self._opened: Future[tuple[Trainer, torch.device, str]] = Future()
        self._judging = Judging(_task())
        self._gate = Gate(arm.memories)
        self._made: list[Trained | None] = [None] * arm.memories
        self._threads = [
            threading.Thread(target=self._train, args=(memory,), daemon=True) for memory in range(arm.memories)
        ]
        for thread in self._threads:
            thread.start()
        _, self._device, self._since = self._opened.result()

    def turn(self) -> Turn:
        return self._gate.turn(self._steps)

    def peak(self) -> tuple[int, str]:
        """Most bytes so far, and since when they were counted."""
        return peak_bytes(self._device), self._since

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
                self._gate.stepped(memory, tokens=detail["tokens"], seconds_update=self._updating(detail))
                if detail["step"] + 1 < self._recipe.steps:
                    self._gate.hold(memory)

        try:
            if memory == 0:
                self._open()
            trainer, _, _ = self._opened.result()
            self._gate.hold(memory)
            self._made[memory] = trainer.train(
                self._question, recipe=self._recipe, seed=memory, observe=observe, cancelled=lambda: False
            )
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the turn
            self._gate.fail(error)

    def _open(self) -> None:
        try:
            local = self._open_model()
            trainer = _trainer(self._arm, local, self._judging)
            self._opened.set_result((trainer, local.network.device, forget_peak(local.network.device)))
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever makes this
            self._opened.set_exception(error)

    def _updating(self, detail: Mapping[str, Any]) -> float:
        """Seconds of a step's update alone: TRL's contain those of judging, the native ones do not."""
        judging = self._judging.taken()
        return float(detail["seconds_update"]) - (judging if self._recipe.trainer == "trl" else 0.0)


class Judging:
    """A task that knows how long it judged answers. Exact for one memory at a time."""

    def __init__(self, task: Task) -> None:
        self._task, self._seconds = task, 0.0
        self.name = task.name

    def messages(self, question: str) -> list[Message]:
        return self._task.messages(question)

    def extract(self, text: str) -> str | None:
        return self._timed(lambda: self._task.extract(text))

    def equivalent(self, left: str, right: str) -> bool:
        return self._timed(lambda: self._task.equivalent(left, right))

    def taken(self) -> float:
        """Seconds since this was asked the last time."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _timed(self, judge: Callable[[], _Value]) -> _Value:
        started = time.perf_counter()
        try:
            return judge()
        finally:
            self._seconds += time.perf_counter() - started


def _task() -> Task:
    from elm_agent.tasks import get_task

    return get_task("math")


def _back_end(arm: Arm) -> str:
    return "native" if arm.trainer == NATIVE else "trl"


def _open(arm: Arm, model: ModelChoice, recipe: Recipe, *, ignore_end: bool) -> LocalModel:
    """The model as this library opens it; for TRL as transformers does."""
    from elm_agent.models.engine import LocalModel

    if arm.trainer == NATIVE:
        return model.native(ignore_end=ignore_end, max_batch_rows=max(64, arm.memories * recipe.rollouts))
    plain = model.plain()
    return LocalModel(plain.model, plain.tokenizer, plain.fingerprint, ignore_end=ignore_end)


def _trainer(arm: Arm, local: LocalModel, task: Task) -> Trainer:
    from elm_agent.training import GrpoTrainer

    if arm.trainer == NATIVE:
        return GrpoTrainer(local, task)
    from elm_agent.training.trl_trainer import TrlTrainer

    return TrlTrainer(local, task, gradient_checkpointing=arm.trainer == TRL, micro_batch=arm.micro_batch)
