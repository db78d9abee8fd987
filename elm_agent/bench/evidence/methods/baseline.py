"""What all baselines share: greedy answers and samples with every token counted, and learning after answering.

A baseline says what it puts before the model and what it keeps; here is how it is asked, seeded and counted. The
runner's clock measures ``answer`` and ``learn`` apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

from elm_agent.bench.evidence.contract import NOTHING, CandidateLine, Item, Learned, Outcome, Workplace
from elm_agent.bench.evidence.methods.calls import CountingModel
from elm_agent.bench.evidence.methods.past import Found, PastQuestions
from elm_agent.errors import TaskError
from elm_agent.memory.answering import candidate
from elm_agent.protocols import GenerationRequest, Message, Task
from elm_agent.records import Candidate, KeyKind, Route, digest_of
from elm_agent.tasks.votes import majority

if TYPE_CHECKING:
    from elm_agent.adapters import KeyValues

T = TypeVar("T")


class Baseline(ABC):
    """A method that learns nothing."""

    learns = False
    sees_answers = False

    def __init__(self, name: str, place: Workplace) -> None:
        self.name = name
        self.place = place
        self.task = place.task
        self.model = CountingModel(place.model)

    def answer(self, item: Item) -> Outcome:
        self.model.start()
        outcome = self._answer(item)
        return replace(outcome, **self.model.counts)

    def learn(self, item: Item, outcome: Outcome | None) -> Learned:
        del item, outcome
        return NOTHING

    def restore(self, item: Item, learned: Learned) -> None:
        """What learns takes it up again."""
        del item, learned

    def close(self) -> None:
        """Nothing is held; the model is another's."""
        return

    @abstractmethod
    def _answer(self, item: Item) -> Outcome:
        """Answer; tokens are counted by the caller."""

    # --- asking -------------------------------------------------------------------------------------------------

    def _greedy(
        self,
        messages: Sequence[Message],
        *,
        prefix: KeyValues | None = None,
        memory_id: str | None = None,
        max_new_tokens: int | None = None,
    ) -> Candidate:
        """The model's most likely reply, by default of at most as many tokens as an answer."""
        request = GenerationRequest(
            prompt_ids=self.model.encode(messages),
            prefix=prefix,
            max_new_tokens=max_new_tokens or self.place.settings.max_new_tokens,
        )
        return candidate(self.model.generate([request])[0], task=self.task, memory_id=memory_id)

    def _plain(self, item: Item) -> Candidate:
        """The zero-shot answer."""
        return self._greedy(self.task.messages(item.question))

    def _samples(self, item: Item, indices: Sequence[int]) -> list[Candidate]:
        """Zero-shot samples of these indices, at the temperature of rollouts; an index is always the same sample."""
        settings, prompt_ids = self.place.settings, self.model.encode(self.task.messages(item.question))
        requests = [
            GenerationRequest(
                prompt_ids=prompt_ids,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.learning.temperature,
                seed=sample_seed(self.place.seed, self.name, item, index),
            )
            for index in indices
        ]
        return [candidate(generation, task=self.task) for generation in self.model.generate(requests)]

    # --- saying -------------------------------------------------------------------------------------------------

    def _without_memory(self, item: Item) -> Outcome:
        """The zero-shot answer, because nothing was learned that may serve."""
        return told(self._plain(item), role="zero_shot", route=Route.NO_MEMORY, reason="nothing was learned before")


class Learner(Baseline):
    """A baseline that learns from a question after it was answered."""

    learns = True

    def learn(self, item: Item, outcome: Outcome | None) -> Learned:
        self.model.start()
        learned = self._learn(item, outcome)
        return replace(learned, **self.model.counts)

    @abstractmethod
    def _learn(self, item: Item, outcome: Outcome | None) -> Learned:
        """Keep something of a question; tokens are counted by the caller."""

    def _solution(self, item: Item, outcome: Outcome | None) -> str:
        """The text of the answer that was given; where there is none, of a zero-shot answer, at learning's cost."""
        return self._plain(item).text if outcome is None else outcome.text

    def _id(self, item: Item) -> str:
        """The memory that a question leaves."""
        return f"{self.name}/{item.id}"


class Retriever(Learner, Generic[T]):
    """A learner that finds what it kept of past questions by the input key (METHOD section 2), as the bank does."""

    def __init__(self, name: str, place: Workplace) -> None:
        super().__init__(name, place)
        self._past: PastQuestions[T] = PastQuestions()

    def _look(self, item: Item, count: int = 1) -> list[Found[T]]:
        return self._past.nearest(item, self.model.query(item.question, KeyKind.INPUT), count)

    def _keep(self, item: Item, kept: T) -> None:
        self._past.add(item, self.model.query(item.question, KeyKind.INPUT), kept)

    def _with_memory(self, found: Sequence[Found[T]], chosen: Candidate) -> Outcome:
        """The answer given with what was found, best first."""
        nearest = found[0]
        return replace(
            told(chosen, role="memory"),
            memory_id=self._id(nearest.past.item),
            memory_item=nearest.past.item.id,
            similarity=nearest.similarity,
            detail={"retrieved": [one.past.item.id for one in found]} if len(found) > 1 else {},
        )


def told(chosen: Candidate, *, role: str, route: Route | None = None, reason: str | None = None) -> Outcome:
    """The outcome of one candidate."""
    return Outcome(
        answer=chosen.answer,
        text=chosen.text,
        candidates=(CandidateLine.of(role, chosen),),
        route=None if route is None else route.value,
        reason=reason,
        memory_id=chosen.memory_id,
    )


def voted(candidates: Sequence[Candidate], task: Task) -> tuple[Candidate | None, float]:
    """The first candidate of the most common answer and that answer's share; None when nobody answered.

    Raises ``TaskError`` when answers could not be compared: a vote that cannot be counted has no winner.
    """
    vote = majority([one.answer for one in candidates], task.equivalent)
    if vote.failures:
        raise TaskError(f"{len(vote.failures)} votes could not be compared: {next(iter(vote.failures.values()))}")
    return candidates[vote.members[0]] if vote.members else None, vote.share


def sample_seed(seed: int, name: str, item: Item, index: int) -> int:
    """In [0, 2**60): of a sample of an item, whatever options its method has; other methods draw other samples."""
    return int(digest_of([seed, name.partition(":")[0], item.digest, index]).removeprefix("sha256:")[:15], 16)


def number_option(name: str, default: int) -> int:
    """The number after the colon of a method's name; ``open_method`` has seen that it is one."""
    return int(name.partition(":")[2] or default)
