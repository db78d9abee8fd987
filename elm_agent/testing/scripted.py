"""A trainer that does what its question says, in whatever process it runs: for tests of executors and crowds.

The words of a question are its script, files in one folder are the only way in and out, so a test steers and
counts trainings of other processes and hosts as it does those of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elm_agent.errors import JobCancelled, TrainingError
from elm_agent.protocols import Observer, Trained
from elm_agent.records import Recipe, question_digest
from elm_agent.testing.doubles import FakeModel, FakeTrainer

if TYPE_CHECKING:
    from elm_agent.runtime import Runtime
    from elm_agent.settings import Settings

_LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Start:
    """One training that began: its question and the process."""

    question: str
    pid: int


class ScriptedTrainer:
    """A ``Trainer`` on the fake model.

    Words of a question that mean something: ``[fail]`` raises each time, ``[fail-once]`` the first time,
    ``[fatal]`` raises what no second attempt mends, ``[hold:NAME]`` waits before the last step until
    ``let_go(folder, NAME)``. All others are learnt at once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def train(
        self,
        question: str,
        *,
        recipe: Recipe,
        seed: int,
        observe: Observer,
        cancelled: Callable[[], bool],
    ) -> Trained:
        first = _note_start(self._folder, question)
        script = _script(question)
        if "fatal" in script:
            raise TrainingError("the script says [fatal]")
        if "fail" in script or ("fail-once" in script and first):
            raise RuntimeError("the script says to fail")
        holds = [self._folder / "go" / word.removeprefix("hold:") for word in script if word.startswith("hold:")]

        def hold(step: int) -> None:
            while step == 1 and not all(file.exists() for file in holds):
                if cancelled():
                    raise JobCancelled("asked to stop while the script held it")
                time.sleep(_LOOK_SECONDS)

        return FakeTrainer(steps=2, before_step=hold).train(
            question, recipe=recipe, seed=seed, observe=observe, cancelled=cancelled
        )


def let_go(folder: Path, name: str) -> None:
    """Let every training with ``[hold:NAME]`` go on, from now on."""
    (folder / "go").mkdir(parents=True, exist_ok=True)
    (folder / "go" / name).touch()


def starts(folder: Path) -> list[Start]:
    """Every training that has begun, in order of time."""
    files = sorted((folder / "starts").glob("*.txt"), key=lambda file: int(file.name.split("-")[0]))
    return [Start(file.read_text("utf-8"), int(file.name.split("-")[1])) for file in files]


def open_scripted_runtime(settings: Settings, **more: Any) -> Runtime:
    """A runtime with the fake model and a ``ScriptedTrainer`` on ``settings.home``: a ``ray.factory`` for tests."""
    from elm_agent.runtime import open_runtime

    return open_runtime(settings, model=FakeModel(), trainer=ScriptedTrainer(settings.home), **more)


def _note_start(folder: Path, question: str) -> bool:
    """Whether it is the first of this question."""
    name = question_digest(question).removeprefix("sha256:")[:16]
    (folder / "starts").mkdir(parents=True, exist_ok=True)
    first = not any((folder / "starts").glob(f"*-{name}.txt"))
    file = folder / "starts" / f"{time.time_ns()}-{os.getpid()}-{name}.txt"
    unfinished = file.with_suffix(".part")
    unfinished.write_text(question, "utf-8")
    unfinished.rename(file)
    return first


def _script(question: str) -> set[str]:
    return {word[1:-1] for word in question.split() if word.startswith("[") and word.endswith("]")}
