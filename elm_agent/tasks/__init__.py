"""Kinds of question: how to ask one, how to find the answer in a completion, when two answers mean the same.

Knows nothing of models, memories or training. A task of your own is any object that fits ``protocols.Task``.
"""

from __future__ import annotations

from collections.abc import Callable

from elm_agent.errors import InputError
from elm_agent.protocols import Task
from elm_agent.tasks import algebra
from elm_agent.tasks.choice import ChoiceTask
from elm_agent.tasks.mathematics import CHAIN_OF_THOUGHT, MathTask
from elm_agent.tasks.number import NumberTask
from elm_agent.tasks.text import TextTask

__all__ = ["CHAIN_OF_THOUGHT", "ChoiceTask", "MathTask", "NumberTask", "TextTask", "close", "get_task", "task_names"]

_TASKS: dict[str, Callable[[], Task]] = {
    "math": MathTask,
    "number": NumberTask,
    "choice": ChoiceTask,
    "text": TextTask,
}


def get_task(name: str) -> Task:
    """A built-in task with its defaults: math, number, choice or text. Raises ``InputError`` for another name."""
    if name not in _TASKS:
        raise InputError(f"unknown task {name!r}: expected one of {', '.join(sorted(_TASKS))}")
    return _TASKS[name]()


def task_names() -> frozenset[str]:
    """What ``get_task`` knows."""
    return frozenset(_TASKS)


def close() -> None:
    """End the process that compares algebra, if one runs. Also done at exit."""
    algebra.shared.close()
