"""A model that counts, and yet lets rows run together: what the agent asks for at once is one batch."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from elm_agent.bench.evidence.methods.calls import CountingModel
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Generation


class Watched(CountingModel):
    """``CountingModel`` whose rows are counted when the answer is there, not while they are waited for."""

    def start(self) -> None:
        super().start()
        self._rows: list[Future[Generation]] = []

    def submit(self, request: GenerationRequest) -> Future[Generation]:
        self.prompt_tokens += len(request.prompt_ids)
        row = self.inner.submit(request)
        self._rows.append(row)
        return row

    @property
    def counts(self) -> dict[str, Any]:
        """Rows that failed or were given up count what was read for them."""
        ended = [row.result() for row in self._rows if row.done() and not row.cancelled() and row.exception() is None]
        told = sum(len(generation.token_ids) for generation in ended)
        return {"tokens": self.tokens + told, "prompt_tokens": self.prompt_tokens}
