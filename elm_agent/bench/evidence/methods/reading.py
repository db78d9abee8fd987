"""Greedy answers with one memory before the question, or of a network that was trained. No routes, no verifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elm_agent.adapters import Kept, Weights
from elm_agent.bench.evidence.contract import CandidateLine, Item, Outcome, Workplace
from elm_agent.memory.answering import candidate
from elm_agent.protocols import GenerationRequest, LanguageModel, Trained


class Reading:
    """Close it: a trained network has a thread of its own."""

    def __init__(self, place: Workplace, trained: Trained) -> None:
        from elm_agent.models.engine import LocalModel

        self._place = place
        self._own: LocalModel | None = None
        self._model: LanguageModel = place.model
        self._prefix: Kept | None = None
        if isinstance(trained.prompt, Weights):
            assert isinstance(place.model, LocalModel)
            network: Any = trained.prompt.network
            self._own = self._model = LocalModel(network, place.model.tokenizer, place.model.fingerprint)
        else:
            self._prefix = trained.prompt

    def answer(self, items: Sequence[Item], *, memory: str | None = None) -> list[Outcome]:
        """The answers in order. ``memory``: id of the item that it is the memory of."""
        model, task = self._model, self._place.task
        asked = [model.encode(task.messages(item.question)) for item in items]
        limit = self._place.settings.max_new_tokens
        rows = [GenerationRequest(prompt_ids=ids, prefix=self._prefix, max_new_tokens=limit) for ids in asked]
        positions = 0 if self._prefix is None else self._prefix.virtual_tokens
        made = [candidate(one, task=task, memory_id=memory) for one in model.generate(rows)]
        return [
            Outcome(
                answer=one.answer,
                text=one.text,
                candidates=(CandidateLine.of("memory", one),),
                memory_id=memory,
                memory_item=memory,
                tokens=one.tokens,
                prompt_tokens=len(ids) + positions,
            )
            for one, ids in zip(made, asked, strict=True)
        ]

    def close(self) -> None:
        """Idempotent."""
        if self._own is not None:
            self._own.close()
