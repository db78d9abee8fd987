"""Answers per second of this library's engine and of plain ``model.generate``, each in a process of its own.

Both are asked the same: every second question with a memory, and answers of three lengths in turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elm_agent.bench.speed_machine import ModelChoice
from elm_agent.protocols import GenerationRequest

if TYPE_CHECKING:
    import torch

CALLERS = (1, 4, 16)
PLAIN = "generate"  # who asks, beside "N callers"
QUESTIONS = tuple(f"What is {number} times {number + 5}?" for number in range(2, 18))


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is asked for: so many tokens, the end token ignored."""

    question: str
    with_memory: bool
    tokens: int


def lengths_of(tokens: int) -> tuple[int, int, int]:
    return tokens, 2 * tokens, max(tokens // 2, 1)


def asks_of(tokens: int) -> list[Ask]:
    """Every question once; with and without a memory there are all lengths."""
    lengths = lengths_of(tokens)
    return [Ask(question, number % 2 == 1, lengths[number % 3]) for number, question in enumerate(QUESTIONS)]


class EngineAnswers:
    """Callers on threads, each with one question at a time until all are answered; end tokens are ignored."""

    def __init__(self, *, model: ModelChoice, tokens: int, virtual_tokens: int) -> None:
        from elm_agent.softprompt import SoftPrompt
        from elm_agent.tasks import get_task

        self._model, task = model.native(ignore_end=True), get_task("math")
        memory = SoftPrompt(_noise(virtual_tokens, self._model.network.width))

        def request(ask: Ask) -> GenerationRequest:
            ids = self._model.encode(task.messages(ask.question))
            prefix = memory if ask.with_memory else None
            return GenerationRequest(prompt_ids=ids, prefix=prefix, max_new_tokens=ask.tokens)

        self._requests = [request(ask) for ask in asks_of(tokens)]
        self._one, self._other = (request(Ask(QUESTIONS[0], with_memory, tokens)) for with_memory in (False, True))

    def callers(self, count: int) -> float:
        """Tokens per second of all callers together."""
        left, lock, tokens, errors = list(self._requests), threading.Lock(), [0], list[Exception]()

        def call() -> None:
            while True:
                with lock:
                    if not left or errors:
                        return
                    request = left.pop()
                try:
                    drawn = len(self._model.submit(request).result().token_ids)
                except Exception as error:  # noqa: BLE001 - raised again by who waits for this thread
                    errors.append(error)
                    return
                with lock:
                    tokens[0] += drawn

        threads = [threading.Thread(target=call) for _ in range(count)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return tokens[0] / (time.perf_counter() - started)

    def seconds(self, both: bool) -> float:
        """Of one answer, or of both answers (without and with a memory) asked for at once."""
        requests = [self._one, self._other] if both else [self._one]
        started = time.perf_counter()
        self._model.generate(requests)
        return time.perf_counter() - started


class PlainAnswers:
    """The same by transformers, one after the other; a memory is read as embeddings before the question's."""

    def __init__(self, *, model: ModelChoice, tokens: int, virtual_tokens: int) -> None:
        from elm_agent.models.engine import LocalModel
        from elm_agent.models.quiet import quiet
        from elm_agent.tasks import get_task

        plain, task = model.plain(), get_task("math")
        encode = LocalModel(plain.model, plain.tokenizer, plain.fingerprint).encode
        self._network: Any = plain.model
        self._quiet = quiet
        own = plain.model.generation_config
        self._options = type(own)(pad_token_id=own.pad_token_id, do_sample=False)
        own.eos_token_id = None  # or it would be filled in from here
        weight_VE: Any = plain.model.get_input_embeddings().weight
        self._memory_VE = _noise(virtual_tokens, weight_VE.shape[1]).to(weight_VE.device, weight_VE.dtype)
        self._asks = [(ask, encode(task.messages(ask.question))) for ask in asks_of(tokens)]

    def one_by_one(self) -> float:
        """Tokens per second."""
        import torch

        started = time.perf_counter()
        with torch.no_grad(), self._quiet():
            tokens = sum(self._drawn(ask, ids) for ask, ids in self._asks)
        return tokens / (time.perf_counter() - started)

    def _drawn(self, ask: Ask, ids: Sequence[int]) -> int:
        """How many tokens it took."""
        import torch

        ids_1T = torch.tensor([ids], device=self._memory_VE.device)
        given: dict[str, Any] = {"input_ids": ids_1T}
        if ask.with_memory:
            text_TE = self._network.get_input_embeddings()(ids_1T)[0]
            given = {"inputs_embeds": torch.cat([self._memory_VE, text_TE])[None]}
        [whole] = given.values()
        mask_1T = torch.ones(whole.shape[:2], dtype=torch.long, device=whole.device)
        made = self._network.generate(
            **given, attention_mask=mask_1T, generation_config=self._options, max_new_tokens=ask.tokens
        )
        return int(made.shape[1]) - (0 if ask.with_memory else len(ids))  # of embeddings only what is new comes back


def _noise(virtual_tokens: int, width: int) -> torch.Tensor:
    """A memory (V, E) for measuring: what it says does not matter."""
    import torch

    return torch.randn(virtual_tokens, width, generator=torch.Generator().manual_seed(0)) * 0.1


def callers_name(count: int) -> str:
    return f"{count} caller{'s' * (count > 1)} at once"


def ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Median of (seconds of both) / (seconds of one), each pair measured one after the other."""
    ratios = sorted(both / one for one, both in pairs)
    middle = len(ratios) // 2
    return ratios[middle] if len(ratios) % 2 else (ratios[middle - 1] + ratios[middle]) / 2
