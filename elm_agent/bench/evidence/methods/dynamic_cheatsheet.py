"""Dynamic Cheatsheet, cumulative (Suzgun et al., arXiv 2504.07952, section 2, DC-Cu): one text that is rewritten.

Each question is answered with the sheet before it; then a curator, the same model, rewrites the sheet.
"""

from __future__ import annotations

from elm_agent.bench.evidence.contract import CandidateLine, Item, Learned, Outcome, Workplace
from elm_agent.bench.evidence.methods import prompts
from elm_agent.bench.evidence.methods.baseline import Learner, told
from elm_agent.records import Route


class DynamicCheatsheet(Learner):
    """A curator's reply without the tags that it is asked for is the sheet as a whole (small models forget tags, and
    the source would then never learn); an empty one leaves the sheet as it was.

    A question that was learned from before is answered with the sheet as it was before that.
    """

    def __init__(self, name: str, place: Workplace) -> None:
        super().__init__(name, place)
        self._sheets: list[tuple[Item, str]] = []  # each question that changed the sheet, and the sheet after it

    def _answer(self, item: Item) -> Outcome:
        before = self._before(item)
        if before is None:
            plain = self._plain(item)
            return told(plain, role="zero_shot", route=Route.NO_MEMORY, reason="the cheatsheet is empty")
        latest, sheet = before
        messages = prompts.with_text(self.task, item.question, prompts.WITH_SHEET.format(sheet=sheet))
        return told(self._greedy(messages, memory_id=self._id(latest)), role="memory")

    def _learn(self, item: Item, outcome: Outcome | None) -> Learned:
        solution = self._solution(item, outcome)
        old = self._sheets[-1][1] if self._sheets else prompts.EMPTY_SHEET
        curate = prompts.CURATE.format(sheet=old, question=item.question, solution=solution)
        reply = self._greedy(prompts.ask(curate), max_new_tokens=prompts.SHEET_TOKENS)
        texts, sheet = (CandidateLine.of("cheatsheet", reply),), prompts.sheet_in(reply.text)
        if not sheet:
            return Learned(reason="the curator's sheet is empty", texts=texts)
        self._sheets.append((item, sheet))
        return Learned(memory_id=self._id(item), texts=texts, kept={"sheet": sheet})

    def restore(self, item: Item, learned: Learned) -> None:
        if learned.memory_id is not None:
            self._sheets.append((item, learned.kept["sheet"]))

    def _before(self, item: Item) -> tuple[Item, str] | None:
        """The newest sheet that has seen no question equal to this one, and whose it is."""
        newest = None
        for learned, sheet in self._sheets:
            if learned.digest == item.digest:
                return newest
            newest = learned, sheet
        return newest
