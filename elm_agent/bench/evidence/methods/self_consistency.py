"""Many samples, and the answer that most of them give (Wang et al., arXiv 2203.11171, section 2)."""

from __future__ import annotations

from elm_agent.bench.evidence.contract import CandidateLine, Item, Outcome, Workplace
from elm_agent.bench.evidence.methods.baseline import Baseline, number_option, voted
from elm_agent.records import Candidate
from elm_agent.settings import Settings


class SelfConsistency(Baseline):
    """``self_consistency:N``: N samples. ``self_consistency``: as many as fit into what elm may generate at most.

    That is both of its answers and every rollout of a memory, so the vote has no fewer tokens for a question than
    elm has for answering and learning together. A sample is drawn only while a whole one still fits: the budget is
    never exceeded, and less than one longest answer of it stays unused. Ties go to the answer that came first.
    """

    def __init__(self, name: str, place: Workplace) -> None:
        super().__init__(name, place)
        self._count = number_option(name, 0)
        self._budget = equal_tokens(place.settings)

    def _answer(self, item: Item) -> Outcome:
        samples = self._samples(item, range(self._count)) if self._count else self._within_budget(item)
        winner, share = voted(samples, self.task)
        chosen = winner or samples[0]
        return Outcome(
            answer=chosen.answer,
            text=chosen.text,
            candidates=tuple(CandidateLine.of("sample", sample) for sample in samples),
            detail={"samples": len(samples), "vote_share": share},
        )

    def _within_budget(self, item: Item) -> list[Candidate]:
        longest, samples, left = self.place.settings.max_new_tokens, list[Candidate](), self._budget
        while fitting := left // longest:
            drawn = self._samples(item, range(len(samples), len(samples) + fitting))
            left -= sum(sample.tokens for sample in drawn)
            samples += drawn
        return samples


def equal_tokens(settings: Settings) -> int:
    """Most tokens that elm generates for a question: two answers, and all rollouts of a memory (METHOD section 1)."""
    learning = settings.learning
    return 2 * settings.max_new_tokens + learning.steps * learning.rollouts * learning.max_new_tokens
