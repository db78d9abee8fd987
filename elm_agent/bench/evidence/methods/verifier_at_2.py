"""Two zero-shot samples, and a verifier that chooses (the ELM paper, arXiv 2606.17803, appendix E.2).

What routing costs without any memory: as many answers and the same verifier as elm, so the difference is the memory.
"""

from __future__ import annotations

from elm_agent.bench.evidence.contract import CandidateLine, Item, Outcome, Workplace
from elm_agent.bench.evidence.methods.baseline import Baseline
from elm_agent.errors import VerificationError
from elm_agent.memory.answering import decide
from elm_agent.records import Route
from elm_agent.runtime import verifier_of


class VerifierAt2(Baseline):
    """Equal answers agree, else the higher score wins; a tie goes to the first. The verifier is that of the settings.

    ``route`` stays None: neither sample is a memory's.
    """

    def __init__(self, name: str, place: Workplace) -> None:
        super().__init__(name, place)
        self._verifier = verifier_of(place.settings, self.model, self.task, seed=place.seed)

    def _answer(self, item: Item) -> Outcome:
        first, second = self._samples(item, range(2))
        decision = decide(item.question, memory=second, zero_shot=first, task=self.task, verifier=self._verifier)
        if decision.route is Route.FAILED_MEMORY:
            raise VerificationError(f"the samples could not be judged: {decision.reason}")
        assert decision.memory is not None
        return Outcome(
            answer=decision.answer,
            text=decision.text,
            candidates=tuple(CandidateLine.of("sample", one) for one in (decision.zero_shot, decision.memory)),
            reason=decision.reason,
            detail={"agreed": decision.route is Route.AGREED, "chosen": int(decision.route is Route.MEMORY)},
        )
