"""ExpRAG: past experiences as text, the nearest of them in the prompt (Wei et al., arXiv 2511.20857, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from elm_agent.bench.evidence.contract import CandidateLine, Item, Learned, Outcome, Workplace
from elm_agent.bench.evidence.methods import prompts
from elm_agent.bench.evidence.methods.baseline import Retriever, number_option

EXPERIENCES = 3
"""How many are retrieved; ours, ``exp_rag:N`` has another number."""


@dataclass(frozen=True, slots=True)
class Experience:
    """An answered question. ``right``: what the model itself says of its answer; None: it did not say."""

    question: str
    solution: str
    right: bool | None

    @property
    def text(self) -> str:
        return prompts.EXPERIENCE.format(
            question=self.question, solution=self.solution, feedback=prompts.FEEDBACK[self.right]
        )


class ExpRag(Retriever[Experience]):
    """The benchmark's feedback tells right from wrong; here nobody does, so the model judges its own answer."""

    def __init__(self, name: str, place: Workplace) -> None:
        super().__init__(name, place)
        self._count = number_option(name, EXPERIENCES)

    def _answer(self, item: Item) -> Outcome:
        found = self._look(item, self._count)
        if not found:
            return self._without_memory(item)
        nearest_last = "\n\n".join(one.past.kept.text for one in reversed(found))
        before = prompts.WITH_EXPERIENCES.format(experiences=nearest_last)
        messages = prompts.with_text(self.task, item.question, before)
        return self._with_memory(found, self._greedy(messages, memory_id=self._id(found[0].past.item)))

    def _learn(self, item: Item, outcome: Outcome | None) -> Learned:
        solution = self._solution(item, outcome)
        asked = prompts.ask(prompts.CHECK.format(question=item.question, solution=solution))
        check = self._greedy(asked, max_new_tokens=prompts.VERDICT_TOKENS)
        right = prompts.verdict(check.text)
        self._keep(item, Experience(item.question, solution, right))
        return Learned(
            memory_id=self._id(item),
            reason=prompts.FEEDBACK[right],
            texts=(CandidateLine.of("critique", check),),
            kept={"solution": solution, "right": right},
        )

    def restore(self, item: Item, learned: Learned) -> None:
        self._keep(item, Experience(item.question, **learned.kept))
