"""The plain greedy answer, against which everything else is measured."""

from __future__ import annotations

from elm_agent.bench.evidence.contract import NOTHING, CandidateLine, Item, Learned, Outcome, Workplace
from elm_agent.memory.answering import ask, candidate


class ZeroShot:
    """Remembers nothing."""

    learns = False
    sees_answers = False

    def __init__(self, name: str, workplace: Workplace) -> None:
        self.name = name
        self._place = workplace

    def answer(self, item: Item) -> Outcome:
        model, task = self._place.model, self._place.task
        made = candidate(
            ask(item.question, model=model, task=task, max_new_tokens=self._place.settings.max_new_tokens).result(),
            task=task,
        )
        return Outcome(
            answer=made.answer,
            text=made.text,
            candidates=(CandidateLine.of("zero_shot", made),),
            tokens=made.tokens,
            prompt_tokens=len(model.encode(task.messages(item.question))),
        )

    def learn(self, item: Item, outcome: Outcome | None) -> Learned:
        del item, outcome
        return NOTHING

    def restore(self, item: Item, learned: Learned) -> None:
        """Nothing to take up."""

    def close(self) -> None:
        """Nothing to close."""
