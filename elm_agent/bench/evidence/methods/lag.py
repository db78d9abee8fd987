"""Log-augmented generation: stored key-value states of past reasoning (Chen et al., arXiv 2505.14398).

After a question its whole text is read, question and answer, and the states of the answer alone are kept, without
their positions, behind those of the first token. The nearest past answer's states are put before a new question, at
positions from 0. As the ELM paper has them (arXiv 2606.17803, section 4.2 and appendix E.3): LAG keeps the greedy
answer, LAG-TTS one that won a vote.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from elm_agent.adapters import KeyValues, from_bytes, to_bytes
from elm_agent.bench.evidence.contract import CandidateLine, Item, Learned, Outcome, Workplace
from elm_agent.bench.evidence.methods.baseline import Retriever, number_option, voted
from elm_agent.errors import InputError
from elm_agent.models.engine import LocalModel
from elm_agent.models.logs import check_logs, log_of
from elm_agent.records import Recipe
from elm_agent.storage.tensors.local import LocalTensors

_NAMESPACE = "logs"
_ANCHOR = 1
"""First tokens kept with a log. The source keeps none, and a small model then answers nothing: docs/baselines.md."""


@dataclass(frozen=True, slots=True)
class Log:
    """Where stored states lie: the digest of their file, and how many positions they are."""

    states: str
    positions: int


class Lag(Retriever[Log]):
    """``lag``. The log is read again when it is kept, without what was put before its question."""

    def __init__(self, name: str, place: Workplace) -> None:
        super().__init__(name, place)
        if not isinstance(place.model, LocalModel):
            raise InputError(f"method {name!r} needs a LocalModel, whose states it keeps; got {place.model!r:.80}")
        check_logs(place.model)
        self._local = place.model
        self._files = LocalTensors(place.folder)

    def _answer(self, item: Item) -> Outcome:
        found = self._look(item)
        if not found:
            return self._without_memory(item)
        past = found[0].past
        states = self._states(past.item, past.kept)
        chosen = self._greedy(self.task.messages(item.question), prefix=states, memory_id=states.memory_id)
        return self._with_memory(found, chosen)

    def _learn(self, item: Item, outcome: Outcome | None) -> Learned:
        return self._log(item, self._solution(item, outcome))

    def _log(self, item: Item, solution: str) -> Learned:
        if not solution:
            return Learned(reason="the answer is empty")
        states, read = log_of(
            self._local, self.task.messages(item.question), solution, memory_id=self._id(item), anchor=_ANCHOR
        )
        self.model.prompt_tokens += read
        log = Log(self._files.put(_NAMESPACE, to_bytes(states)), states.virtual_tokens)
        self._keep(item, log)
        kept = {"states": log.states, "positions": log.positions}
        return Learned(memory_id=states.memory_id, kept=kept)

    def restore(self, item: Item, learned: Learned) -> None:
        if learned.memory_id is not None:
            self._keep(item, Log(**learned.kept))

    def _states(self, item: Item, log: Log) -> KeyValues:
        """Raises ``TensorMissing`` or ``TensorCorrupt`` where the file is not what was stored."""
        data = self._files.get(_NAMESPACE, log.states)
        prefix = Recipe(parameterisation="prefix")
        kept = from_bytes(data, recipe=prefix, virtual_tokens=log.positions, width=0, memory_id=self._id(item))
        assert isinstance(kept, KeyValues)
        return kept


class LagTts(Lag):
    """``lag_tts``: the log is the first of the zero-shot samples that agree most; ``lag_tts:N`` draws N of them, else
    as many as a training step has rollouts. Without a single answer nothing is kept."""

    def __init__(self, name: str, place: Workplace) -> None:
        super().__init__(name, place)
        self._count = number_option(name, place.settings.learning.rollouts)

    def _learn(self, item: Item, outcome: Outcome | None) -> Learned:
        del outcome
        samples = self._samples(item, range(self._count))
        winner, share = voted(samples, self.task)
        texts = tuple(CandidateLine.of("sample", sample) for sample in samples)
        if winner is None:
            learned = Learned(reason=f"none of {len(samples)} samples has an answer")
        else:
            learned = replace(self._log(item, winner.text), reason=f"vote share {share:.3f}")
        return replace(learned, texts=texts)
