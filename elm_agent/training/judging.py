"""What a group of completions is worth: texts, answers and rewards (METHOD 1b).

Whoever sampled the group, a native step or another back end, has it judged here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from elm_agent.errors import TaskError, TrainingError
from elm_agent.models.decoding import Row
from elm_agent.models.engine import LocalModel
from elm_agent.protocols import Task
from elm_agent.records import Rollout, StepRecord
from elm_agent.tasks.votes import majority

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Judged:
    """A group's rollouts with their rewards, the majority answer and its share of the group."""

    rollouts: list[Rollout]
    answer: str | None
    share: float

    def record(
        self,
        *,
        loss: float,
        kl: float,
        grad_norm: float,
        clip_fraction: float,
        seconds_rollout: float,
        seconds_update: float,
        ratio_mean: float | None = None,
        ratio_max: float | None = None,
    ) -> StepRecord:
        """What is kept of the step that learned from this group."""
        rewards = [rollout.reward for rollout in self.rollouts if rollout.reward is not None]
        return StepRecord(
            step=self.rollouts[0].step,
            majority_answer=self.answer,
            vote_share=self.share,
            reward_mean=sum(rewards) / len(rewards),
            loss=loss,
            kl=kl,
            grad_norm=grad_norm,
            clip_fraction=clip_fraction,
            tokens=sum(rollout.tokens for rollout in self.rollouts),
            finished_share=sum(rollout.finished for rollout in self.rollouts) / len(self.rollouts),
            seconds_rollout=seconds_rollout,
            seconds_update=seconds_update,
            ratio_mean=ratio_mean,
            ratio_max=ratio_max,
        )


def judge(model: LocalModel, task: Task, rows: Sequence[Row], step: int, *, truth: str | None = None) -> Judged:
    """Give every completion of the group its reward.

    ``truth``: rewards say whether an answer means the same as this one; None: as the majority's (TTRL).

    Raises ``TrainingError`` when no row could be given a reward.
    """
    texts = [model.decode_text(row.tokens) for row in rows]
    answers, failures = zip(*(_tried(task.extract, text) for text in texts), strict=True)
    if all(failures):
        raise TrainingError(f"step {step + 1}: no answer of {len(rows)} could be extracted: {failures[0]}")
    vote = majority(answers, task.equivalent)
    if truth is None:
        rewards, doubts = list(vote.rewards_G), [vote.failures.get(index) for index in range(len(rows))]
    else:
        rewards, doubts = _right(task, answers, truth)
    reasons = [failure or doubt for failure, doubt in zip(failures, doubts, strict=True)]
    if all(reasons):
        raise TrainingError(f"step {step + 1}: no answer of {len(rows)} could be compared: {reasons[0]}")
    rollouts = [
        Rollout(
            step=step,
            index=index,
            seed=row.seed,
            text=texts[index],
            answer=answers[index],
            reward=None if reasons[index] else rewards[index],
            tokens=len(row.tokens),
            finished=row.finished,
            failure=reasons[index],
        )
        for index, row in enumerate(rows)
    ]
    return Judged(rollouts, vote.answer, vote.share)


def _right(task: Task, answers: Sequence[str | None], truth: str) -> tuple[list[float | None], list[str | None]]:
    """1.0 for an answer that means ``truth``, 0.0 for another or none, None where that failed; and why it did."""
    same_as = partial(task.equivalent, truth)
    pairs = [(False, None) if answer is None else _tried(same_as, answer) for answer in answers]
    return [None if failure else float(bool(same)) for same, failure in pairs], [failure for _, failure in pairs]


def _tried(function: Callable[..., Value], *arguments: str) -> tuple[Value | None, str | None]:
    """What a task says, or why it cannot."""
    try:
        return function(*arguments), None
    except TaskError as error:
        return None, str(error) or type(error).__name__
