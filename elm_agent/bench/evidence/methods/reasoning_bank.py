"""ReasoningBank: solve, check, refine a strategy, retrieve (Ouyang et al., arXiv 2509.25140, section 3).

As the ELM paper has it (arXiv 2606.17803, section 4.2): a pass that checks its own answer without a reference, and a
pass that makes a strategy of a success and a lesson of a failure. One strategy of a question, the nearest is used.
"""

from __future__ import annotations

from elm_agent.bench.evidence.contract import CandidateLine, Item, Learned, Outcome
from elm_agent.bench.evidence.methods import prompts
from elm_agent.bench.evidence.methods.baseline import Retriever


class ReasoningBank(Retriever[str]):
    """A reply to the check without a verdict counts as not confirmed, and teaches a lesson."""

    def _answer(self, item: Item) -> Outcome:
        found = self._look(item)
        if not found:
            return self._without_memory(item)
        past = found[0].past
        messages = prompts.with_text(self.task, item.question, prompts.WITH_STRATEGY.format(strategy=past.kept))
        return self._with_memory(found, self._greedy(messages, memory_id=self._id(past.item)))

    def _learn(self, item: Item, outcome: Outcome | None) -> Learned:
        case = {"question": item.question, "solution": self._solution(item, outcome)}
        check = self._greedy(prompts.ask(prompts.CHECK.format(**case)), max_new_tokens=prompts.VERDICT_TOKENS)
        verdict = prompts.verdict(check.text)
        asked = prompts.ask((prompts.STRATEGY if verdict else prompts.LESSON).format(**case))
        refine = self._greedy(asked, max_new_tokens=prompts.STRATEGY_TOKENS)
        texts = (CandidateLine.of("critique", check), CandidateLine.of("strategy", refine))
        strategy = refine.text.strip()
        if not strategy:
            return Learned(reason="the strategy is empty", texts=texts)
        self._keep(item, strategy)
        return Learned(
            memory_id=self._id(item),
            reason=prompts.FEEDBACK[verdict],
            texts=texts,
            kept={"strategy": strategy, "verdict": verdict},
        )

    def restore(self, item: Item, learned: Learned) -> None:
        if learned.memory_id is not None:
            self._keep(item, learned.kept["strategy"])
