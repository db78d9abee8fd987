"""A model that counts, and yet lets rows run together: what the agent asks for at once is one batch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from elm_agent.bench.evidence.methods.calls import CountingModel
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Generation


class Watched(CountingModel):
    """``CountingModel`` whose rows are counted when the answer is there, not while they are waited for."""

    def start(self) -> None:
        super().start()
        self.drawn: list[Generation] = []  # by ``generate``: the samples that a verifier or a vote wanted
        self.memory_rows = 0  # rows with a memory before them
        self._rows: list[Future[Generation]] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        generations = super().generate(requests)
        self.drawn += generations
        return generations

    def submit(self, request: GenerationRequest) -> Future[Generation]:
        self.prompt_tokens += len(request.prompt_ids)
        self.memory_rows += request.prefix is not None
        row = self.inner.submit(request)
        self._rows.append(row)
        return row

    @property
    def ended(self) -> list[Generation]:
        """Of the rows that were submitted, those that are there."""
        done = [row for row in self._rows if row.done() and not row.cancelled()]
        return [row.result() for row in done if row.exception() is None]

    @property
    def counts(self) -> dict[str, Any]:
        """Rows that failed or were given up count what was read for them."""
        told = sum(len(generation.token_ids) for generation in self.ended)
        return {"tokens": self.tokens + told, "prompt_tokens": self.prompt_tokens}
