"""Prompts that somebody else wrote, answered as the agent answers: with the nearest memory, without, or both.

The bank is read and nothing is written into it. Knows token ids and the bank; knows nothing of the harness.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from elm_agent.errors import InputError, ModelError, TaskError
from elm_agent.integrations.langchain.writing import Until
from elm_agent.memory.answering import Decision, candidate, check_question, decide, decide_alone, describe
from elm_agent.memory.recall import Recall, recall
from elm_agent.models.engine import LocalModel
from elm_agent.protocols import GenerationRequest, Task, Verifier
from elm_agent.records import Candidate, Generation, Route
from elm_agent.runtime import Runtime

if TYPE_CHECKING:
    from elm_agent.adapters import Kept

logger = logging.getLogger(__name__)


class Way(StrEnum):
    """Which answers are generated: both, to choose from; the memory's, where there is a memory; the plain one."""

    BOTH = "both"
    MEMORY = "memory"
    ZERO_SHOT = "zero_shot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt as it is read. ``question``: what is looked up in the bank."""

    ids: tuple[int, ...]
    question: str
    max_new_tokens: int
    stop: tuple[str, ...] = ()  # texts that end an answer and do not belong to it
    temperature: float = 0.0
    seed: int = 0


Find = Callable[[str], Recall]


class Answers:
    """Answers prompts, and counts in ``told`` the routes that were taken. Safe from any thread.

    Args:
        find: the memory of a question, see ``finder``; None: there are none, so every answer is plain.
        verifier: chooses where both answers were generated and differ.
    """

    def __init__(
        self, model: LocalModel, task: Task, *, way: Way, find: Find | None = None, verifier: Verifier | None = None
    ) -> None:
        self.told: Counter[str] = Counter()
        self._model = model
        self._task = task
        self._way = way
        self._find = find
        self._verifier = verifier
        self._telling = threading.Lock()
        self._found: dict[str, Recall] = {}

    def of(self, prompts: Sequence[Prompt], *, together: int) -> Iterator[str]:
        """The texts in order, each when it is there; ``together``: most prompts in flight."""
        with (
            ThreadPoolExecutor(together, thread_name_prefix="elm-rows") as rows,
            ThreadPoolExecutor(together, thread_name_prefix="elm-prompts") as pool,
        ):
            futures = [pool.submit(self._answer, prompt, rows) for prompt in prompts]
            with _given_up(futures):
                for future in futures:
                    yield future.result().text

    def memory_of(self, question: str) -> Kept | None:
        """What is put before a text that is only scored: the nearest memory where the way is ``MEMORY``.

        No verifier chooses between scores, so with ``BOTH`` they are the plain model's.
        """
        return self._recalled(question).prompt if self._way is Way.MEMORY else None

    def _answer(self, prompt: Prompt, rows: ThreadPoolExecutor) -> Decision:
        found = Recall() if self._way is Way.ZERO_SHOT else self._recalled(prompt.question)
        if found.prompt is None:
            route = Route.FAILED_MEMORY if found.failed else Route.NO_MEMORY
            return self._tell(decide_alone(self._row(prompt), route, found.reason))
        beside = rows.submit(self._row, prompt) if self._way is Way.BOTH else None
        try:
            memory = self._row(prompt, found.prompt, found.memory_id)
        except (InputError, ModelError, TaskError) as error:
            zero_shot = self._row(prompt) if beside is None else beside.result()
            reason = f"the answer with memory failed: {describe(error)}"
            return self._tell(decide_alone(zero_shot, Route.FAILED_MEMORY, reason))
        if beside is None:
            return self._tell(_alone(memory, found))
        assert self._verifier is not None
        return self._tell(decide(prompt.question, memory, beside.result(), self._task, self._verifier))

    def _row(self, prompt: Prompt, memory: Kept | None = None, memory_id: str | None = None) -> Candidate:
        request = GenerationRequest(
            prompt_ids=prompt.ids,
            prefix=memory,
            max_new_tokens=prompt.max_new_tokens,
            temperature=prompt.temperature,
            seed=prompt.seed,
        )
        return candidate(written(self._model, request, prompt.stop), task=self._task, memory_id=memory_id)

    def _recalled(self, question: str) -> Recall:
        """Looked for once; a question that cannot be looked up is one whose memory failed."""
        if self._find is None:
            return Recall()
        if question not in self._found:
            try:
                self._found[question] = self._find(check_question(question))
            except (InputError, ModelError) as error:
                self._found[question] = Recall(reason=describe(error), failed=True)
        return self._found[question]

    def _tell(self, decision: Decision) -> Decision:
        if decision.route is Route.FAILED_MEMORY:
            logger.warning("the plain answer stands: %s", decision.reason)
        with self._telling:
            self.told[decision.route.value] += 1
        return decision


def finder(runtime: Runtime) -> Find:
    """Looks up questions in the bank of ``runtime``, as its settings say. Raises ``StorageError``, ``InputError``."""
    chosen, namespace = runtime.settings.retrieval, runtime.settings.namespace

    def find(question: str) -> Recall:
        return recall(
            question,
            bank=runtime.bank,
            model=runtime.model,
            namespace=namespace,
            shared=runtime.shared(namespace),
            kind=chosen.key,
            top_k=chosen.top_k,
            min_similarity=chosen.min_similarity,
            exclude_same_question=chosen.exclude_same_question,
            ranking=runtime.ranking,
            abstaining=None if chosen.min_similarity > -1 else runtime.abstaining(namespace),
        )

    return find


def written(model: LocalModel, request: GenerationRequest, stop: Sequence[str]) -> Generation:
    """A generation that ends where one of the texts of ``stop`` begins: the row is given up when it has written one.

    What is known of its tokens is of those up to there, whoever draws them.
    """
    until = Until(stop)
    with model.stream(request) as row:
        text = ""
        for piece in row:
            text += until.feed(piece)
            if until.found:
                break
        ended = row.so_far() if until.found else None
        # without scores so far the row is waited for: a verifier may want them
        generation = row.result() if ended is None else ended
    return replace(generation, text=text + until.rest())


def _alone(memory: Candidate, found: Recall) -> Decision:
    return Decision(
        route=Route.MEMORY_ALONE,
        answer=memory.answer,
        text=memory.text,
        reason=found.reason,
        memory=memory,
        zero_shot=memory,
    )


@contextmanager
def _given_up(futures: Sequence[Future[Any]]) -> Iterator[None]:
    """What has not begun when this is left is not begun any more."""
    try:
        yield
    finally:
        for future in futures:
            future.cancel()
