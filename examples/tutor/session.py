"""What is around the lessons: problems from files, the shared course, and what was learnt when all is done.

Knows files and the bank; knows no terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lesson import Lesson

from elm_agent import Runtime
from elm_agent.errors import InputError

COURSE = "course"
"""The shared namespace: learnt once, read beside each learner's own, never written by a lesson."""


@dataclass(frozen=True, slots=True)
class Problem:
    question: str
    answer: str | None = None  # None: nobody knows
    hints: tuple[str, ...] = ()
    back: dict[str, str] | None = None


def read_problems(path: Path) -> list[Problem]:
    """One JSON object a line: question, answer, and perhaps hints and back. Raises ``InputError``."""
    problems = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        try:
            made = json.loads(line)
            problems.append(Problem(made["question"], made["answer"], tuple(made.get("hints", ())), made.get("back")))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path.name}, line {number} is no problem with an answer: {error!r}") from None
    return problems


def namespace_of(learner: str) -> str:
    return f"learner.{learner}"


def missing(runtime: Runtime, namespace: str, problems: Sequence[Problem]) -> list[Problem]:
    """Those that nothing was learnt from yet in ``namespace``, which the runtime has opened."""
    known = {memory.question for memory in runtime.bank.memories(namespace)}
    return [problem for problem in problems if problem.question not in known]


def learnt(runtime: Runtime, namespace: str, known: dict[str, str], questions: Sequence[str]) -> Iterator[str]:
    """A line for each memory of ``questions``: what most votes were for, and how their share went."""
    for memory in reversed(runtime.bank.memories(namespace)):
        if memory.question not in questions:
            continue
        episode = runtime.bank.episode(namespace, memory.id)
        first, last = episode.curve[0].vote_share, episode.curve[-1].vote_share
        said, right = episode.majority_answer, known.get(memory.question)
        agreed = "nobody knows" if right is None else f"it is {right}"
        yield (
            f"{memory.question}  votes for {said or 'no answer'} ({agreed}): {first:.0%} -> {last:.0%}"
            f"   {memory.id}, {memory.state}"
        )


def happened(runtime: Runtime, lesson: Lesson) -> Iterator[str]:
    """Two lines on a lesson that is over: how the learner did, and what the tutor's own answer came from."""
    yield f"{lesson['question']}  {lesson['end']}, attempts {len(lesson['attempts'])}, hints {lesson['given']}"
    home, memory_id, noted = lesson["memory_namespace"], lesson["memory_id"], lesson["feedback"]
    used = "without a memory"
    if home is not None and memory_id is not None:
        used = f"beside the memory of {runtime.bank.memory(home, memory_id).question!r} from {home!r}"
    if noted is not None:
        used += f"; noted as {noted['verdict']}" + (f", the memory: {noted['effect']}" if noted["effect"] else "")
    yield f"    the tutor's own answer: {lesson['answer']} ({lesson['route']}), {used}"
