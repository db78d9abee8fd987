"""How a baseline calls the model: every token that is generated or read for it is counted, whoever asks.

Knows the contract of models; knows nothing of what is asked or why.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from elm_agent.protocols import GenerationRequest, LanguageModel, Message
from elm_agent.records import Generation, KeyKind, MemoryKeys, ModelFingerprint, Vector

if TYPE_CHECKING:
    from elm_agent.softprompt import SoftPrompt


class CountingModel:
    """A ``LanguageModel`` that counts what it passes on to another one.

    ``tokens``: generated. ``prompt_tokens``: read, for every row anew; a memory before a row is not read.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.inner = model
        self.start()

    def start(self) -> None:
        """Count from zero again."""
        self.tokens = self.prompt_tokens = 0

    @property
    def counts(self) -> dict[str, Any]:
        """What was counted, by the names that ``Outcome`` and ``Learned`` have for it."""
        return {"tokens": self.tokens, "prompt_tokens": self.prompt_tokens}

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        self.prompt_tokens += sum(len(request.prompt_ids) for request in requests)
        generations = self.inner.generate(requests)
        self.tokens += sum(len(generation.token_ids) for generation in generations)
        return generations

    def submit(self, request: GenerationRequest) -> Future[Generation]:
        """Waits for the row, so that it is counted when this returns."""
        done: Future[Generation] = Future()
        try:
            done.set_result(self.generate([request])[0])
        except Exception as error:  # noqa: BLE001 - a future carries whatever its row raised
            done.set_exception(error)
        return done

    # --- what generates nothing is passed on --------------------------------------------------------------------

    @property
    def fingerprint(self) -> ModelFingerprint:
        return self.inner.fingerprint

    @property
    def context_length(self) -> int:
        return self.inner.context_length

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self.inner.encode(messages)

    def query(self, question: str, kind: KeyKind) -> Vector:
        return self.inner.query(question, kind)

    def keys(self, prompt: SoftPrompt) -> MemoryKeys:
        return self.inner.keys(prompt)

    def training(self) -> AbstractContextManager[None]:
        return self.inner.training()
