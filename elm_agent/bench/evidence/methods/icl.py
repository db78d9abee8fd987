"""In-context learning: the nearest past question with its raw answer as an example (arXiv 2606.17803, 4.2)."""

from __future__ import annotations

from elm_agent.bench.evidence.contract import Item, Learned, Outcome
from elm_agent.bench.evidence.methods.baseline import Retriever
from elm_agent.memory.example import with_turns


class Icl(Retriever[str]):
    """The example is a turn of its own before the question; its answer is what was given then, right or wrong."""

    def _answer(self, item: Item) -> Outcome:
        found = self._look(item)
        if not found:
            return self._without_memory(item)
        past = found[0].past
        messages = with_turns(self.task, item.question, [(past.item.question, past.kept)])
        return self._with_memory(found, self._greedy(messages, memory_id=self._id(past.item)))

    def _learn(self, item: Item, outcome: Outcome | None) -> Learned:
        solution = self._solution(item, outcome)
        self._keep(item, solution)
        return Learned(memory_id=self._id(item), kept={"solution": solution})

    def restore(self, item: Item, learned: Learned) -> None:
        self._keep(item, learned.kept["solution"])
