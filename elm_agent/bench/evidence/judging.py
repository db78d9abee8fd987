"""Right or wrong: of an answer, and of each text that was generated on the way. No comparison, no verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from elm_agent.bench.evidence.contract import CandidateLine, GenerationLine, Item, TaskSet
from elm_agent.memory.answering import describe
from elm_agent.protocols import Task
from elm_agent.tasks import CHAIN_OF_THOUGHT, MathTask, TextTask, get_task

ANSWERS = frozenset({"zero_shot", "memory", "opinion", "sample"})
"""Roles whose texts are meant to answer: one of them without an answer is wrong."""

PROMPTS = {"short": "\nReply with the final answer only, in \\boxed{}.", "paper": CHAIN_OF_THOUGHT}
"""How mathematics and text are asked: the default of this library, and the paper's (A.1)."""

Judge = Callable[[Item, str], bool]


def task_of(kind: str, prompt: str) -> Task:
    """The task of a kind with the instruction of ``PROMPTS``. Raises ``InputError`` for an unknown kind."""
    if kind == "math":
        return MathTask(instruction=PROMPTS[prompt])
    if kind == "text":
        return TextTask(instruction=PROMPTS[prompt])
    return get_task(kind)


def judge_of(made: TaskSet, task: Task) -> Judge:
    """Whether an answer is right: the set's own word, or equivalence with the reference."""
    if made.judge is not None:
        return made.judge
    return lambda item, answer: task.equivalent(answer, item.answer)


def judged(line: GenerationLine, item: Item, judge: Judge) -> GenerationLine:
    """The line with what is right. What cannot be compared is a failure, or for a candidate unknown."""
    if line.failure is not None:
        return line
    candidates = tuple(replace(one, correct=_candidate(one, item, judge)) for one in line.candidates)
    try:
        correct = line.answer is not None and bool(judge(item, line.answer))
    except Exception as error:  # noqa: BLE001 - of a data set's own code anything; recorded as the failure
        return replace(line, candidates=candidates, failure=f"the answer could not be compared: {describe(error)}")
    return replace(line, candidates=candidates, correct=correct)


def _candidate(one: CandidateLine, item: Item, judge: Judge) -> bool | None:
    if one.answer is None:
        return False if one.role in ANSWERS else None
    try:
        return bool(judge(item, one.answer))
    except Exception:  # noqa: BLE001 - where it matters the answer itself fails as well, and says why
        return None
