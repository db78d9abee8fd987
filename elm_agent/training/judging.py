"""What a group of completions is worth: texts, answers and majority-vote rewards (METHOD 1b).

Whoever sampled the group, a native step or another back end, has it judged here.
"""

from __future__ import annotations

from collections.abc import Sequence

from elm_agent.errors import TaskError, TrainingError
from elm_agent.models.decoding import Row
from elm_agent.models.engine import LocalModel
from elm_agent.protocols import Task
from elm_agent.records import Rollout
from elm_agent.tasks.votes import majority


def judge(model: LocalModel, task: Task, rows: Sequence[Row], step: int) -> tuple[list[Rollout], str | None, float]:
    """The group's rollouts with rewards, the majority answer and its share of the group.

    Raises ``TrainingError`` when no row's answer could be extracted.
    """
    texts = [model.decode_text(row.tokens) for row in rows]
    answers, failures = zip(*(_extract(task, text) for text in texts), strict=True)
    if all(failures):
        raise TrainingError(f"step {step + 1}: no answer of {len(rows)} could be extracted: {failures[0]}")
    vote = majority(answers, task.equivalent)
    group = [
        Rollout(
            step=step,
            index=index,
            seed=row.seed,
            text=texts[index],
            answer=answers[index],
            reward=None if failures[index] else vote.rewards_G[index],
            tokens=len(row.tokens),
            finished=row.finished,
            failure=failures[index] or vote.failures.get(index),
        )
        for index, row in enumerate(rows)
    ]
    return group, vote.answer, vote.share


def _extract(task: Task, text: str) -> tuple[str | None, str | None]:
    try:
        return task.extract(text), None
    except TaskError as error:
        return None, str(error) or type(error).__name__
