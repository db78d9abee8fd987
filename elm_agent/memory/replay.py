"""Questions that went wrong are learnt once more, with more rollouts: split votes, and answers that users call wrong.

Once is the queue's promise: a question with a recipe is one job, so whatever asks for the same replay finds it there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from elm_agent.records import JobRecord, MemoryRecord, Recipe

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank

PRIORITY = -1
"""What is new is learnt first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """``rollouts``: of each step of the replay. ``split_below``: final vote share under which a vote was split."""

    rollouts: int
    split_below: float
    max_attempts: int

    def of_question(
        self,
        bank: Bank,
        namespace: str,
        question: str,
        *,
        task: str,
        model_id: str,
        recipe: Recipe,
        subject: str | None,
    ) -> JobRecord:
        """The job, new or not, that learns ``question`` with ``recipe`` but for more rollouts."""
        job, _ = bank.jobs.enqueue(
            namespace,
            question,
            task=task,
            model_id=model_id,
            recipe=replace(recipe, rollouts=max(self.rollouts, recipe.rollouts)),
            priority=PRIORITY,
            max_attempts=self.max_attempts,
            subject=subject,
        )
        return job

    def of_split_vote(self, bank: Bank, done: JobRecord, memory: MemoryRecord) -> JobRecord | None:
        """The replay of a job whose vote stayed split; None when it did not, or was a replay itself."""
        if memory.final_vote_share >= self.split_below or done.recipe.rollouts >= self.rollouts:
            return None
        return self.of_question(
            bank,
            done.namespace,
            done.question,
            task=done.task,
            model_id=done.model_id,
            recipe=done.recipe,
            subject=done.subject,
        )
