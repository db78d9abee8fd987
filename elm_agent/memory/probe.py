"""Tries a fresh memory on its own question and on past ones of its namespace, against answers learnt without labels.

The reference of a question is the majority answer of its training. Rows go through the model's ordinary requests, so
they share batches with answers and leave them when the job is cancelled. Knows bank, task and model; decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elm_agent.errors import InputError, JobCancelled
from elm_agent.memory.admission import ProbeResult, count_answers
from elm_agent.protocols import GenerationRequest, LanguageModel, Task, Trained
from elm_agent.records import Generation, JobRecord, KeyKind, MemoryRecord

if TYPE_CHECKING:
    from elm_agent.adapters import Kept
    from elm_agent.storage.bank import Bank

_LOOK_SECONDS = 0.05  # how often it looks whether it is to stop
_FARTHER = 4  # of the nearest, so many times as many are looked at, for some have no usable reference


@dataclass(frozen=True, slots=True)
class Reference:
    """A question and the answer that most rollouts of its training gave."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Tried:
    """A question with what is read before it in its two rows; None: nothing."""

    reference: Reference
    before: Kept | None
    after: Kept | None


class Probe:
    """Generates greedily with and without a memory.

    Args:
        task_for: the task of a job, by its name.
        questions: most past questions beside the memory's own: the nearest to it, for which it would be retrieved.
        max_new_tokens: of each completion; None: as many as a rollout of the job had.
        min_vote_share: of a past question's memory, from which its majority answer serves as a reference.
    """

    def __init__(
        self,
        *,
        model: LanguageModel,
        task_for: Callable[[str], Task],
        questions: int = 4,
        max_new_tokens: int | None = None,
        min_vote_share: float = 0.5,
    ) -> None:
        if questions < 0:
            raise InputError(f"a probe asks 0 past questions or more; got {questions}")
        self._model = model
        self._task_for = task_for
        self._questions = questions
        self._max_new_tokens = max_new_tokens
        self._min_vote_share = min_vote_share

    def __call__(self, bank: Bank, job: JobRecord, trained: Trained, *, cancelled: Callable[[], bool]) -> ProbeResult:
        """What the memory does. Rows of one probe run together.

        Raises:
            JobCancelled: ``cancelled()`` became true; its rows left their batches.
            InputError, ModelError, StorageError, TaskError: it could not be done.
        """
        from elm_agent.adapters import Weights

        if isinstance(trained.prompt, Weights):
            raise InputError("a whole network is no memory that a row can be read with")
        started, task = time.perf_counter(), self._task_for(job.task)
        own = trained.final.majority_answer
        references = [] if own is None else [Reference(job.question, own)]
        references += self.references(bank, job, trained)
        tried = [Tried(one, None, trained.prompt) for one in references]
        pairs, tokens = self._pairs(tried, task, job.recipe.max_new_tokens, cancelled)
        (own_before, own_after), past = (pairs[0], pairs[1:]) if own is not None else ((False, False), pairs)
        kept, fixed, broken = count_answers(past)
        return ProbeResult(
            own_before=own_before,
            own_after=own_after,
            past=len(past),
            kept=kept,
            fixed=fixed,
            broken=broken,
            tokens=tokens,
            seconds=time.perf_counter() - started,
        )

    def compare(
        self,
        references: Sequence[tuple[Reference, Kept]],
        successor: Kept,
        *,
        task: str,
        max_new_tokens: int,
        cancelled: Callable[[], bool],
    ) -> ProbeResult:
        """What ``successor`` does beside the memory that each question has, on these questions and on no others.

        In the result they are the past ones; what was right before was so with the question's own memory.

        Raises:
            JobCancelled: ``cancelled()`` became true; its rows left their batches.
            InputError, ModelError, TaskError: it could not be done.
        """
        started, asked = time.perf_counter(), self._task_for(task)
        tried = [Tried(reference, own, successor) for reference, own in references]
        pairs, tokens = self._pairs(tried, asked, max_new_tokens, cancelled)
        kept, fixed, broken = count_answers(pairs)
        return ProbeResult(
            own_before=False,
            own_after=False,
            past=len(pairs),
            kept=kept,
            fixed=fixed,
            broken=broken,
            tokens=tokens,
            seconds=time.perf_counter() - started,
        )

    def reference_of(self, bank: Bank, memory: MemoryRecord) -> Reference | None:
        """The memory's own question, if its vote was clear enough; None where there is nothing to compare with."""
        if memory.final_vote_share < self._min_vote_share:
            return None
        answer = bank.episode(memory.namespace, memory.id).majority_answer
        return None if answer is None else Reference(memory.question, answer)

    def references(self, bank: Bank, job: JobRecord, trained: Trained) -> list[Reference]:
        """The past questions, nearest first: of active memories of this task whose vote was clear."""
        if not self._questions:
            return []
        hits = bank.nearest(
            job.namespace,
            KeyKind.INPUT,
            trained.keys.input,
            self._questions * _FARTHER,
            exclude_question=job.question,
        )
        found: list[Reference] = []
        for hit in hits:
            memory = bank.memory(hit.namespace, hit.memory_id)
            one = self.reference_of(bank, memory) if memory.task == job.task else None
            if one is None or any(other.question == one.question for other in found):
                continue
            found.append(one)
            if len(found) == self._questions:
                break
        return found

    def _pairs(
        self, tried: Sequence[Tried], task: Task, limit: int, cancelled: Callable[[], bool]
    ) -> tuple[list[tuple[bool, bool]], int]:
        """(right before, right after) of each, and how many tokens were generated for it."""
        generations = self._generate(tried, task, self._max_new_tokens or limit, cancelled)
        right = [
            _right(generation, tried[index // 2].reference.answer, task)
            for index, generation in enumerate(generations)
        ]
        tokens = sum(len(generation.token_ids) for generation in generations)
        return list(zip(right[::2], right[1::2], strict=True)), tokens

    def _generate(
        self, tried: Sequence[Tried], task: Task, limit: int, cancelled: Callable[[], bool]
    ) -> list[Generation]:
        """Two rows for each: before and after."""
        rows: list[Future[Generation]] = []
        try:
            for one in tried:
                prompt_ids = self._model.encode(task.messages(one.reference.question))
                for prefix in (one.before, one.after):
                    request = GenerationRequest(prompt_ids=prompt_ids, prefix=prefix, max_new_tokens=limit)
                    rows.append(self._model.submit(request))
            while wait(rows, timeout=_LOOK_SECONDS).not_done:
                if cancelled():
                    raise JobCancelled("stopped among the rows of its probe, as asked")
        finally:
            for row in rows:
                row.cancel()  # harmless for those that are done
        return [row.result() for row in rows]


def _right(generation: Generation, reference: str, task: Task) -> bool:
    answer = task.extract(generation.text)
    return answer is not None and task.equivalent(answer, reference)
