"""Answers per second of this library's engine and of plain ``model.generate``, each in a process of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from elm_agent.bench.speed_machine import ModelChoice
from elm_agent.protocols import GenerationRequest

CALLERS = (1, 4, 16)
PLAIN = "generate"  # who asks, beside "N callers"
QUESTIONS = tuple(f"What is {number} times {number + 5}?" for number in range(2, 18))


class EngineAnswers:
    """Callers on threads, each with one question at a time until all are answered; end tokens are ignored."""

    def __init__(self, *, model: ModelChoice, tokens: int, virtual_tokens: int) -> None:
        import torch

        from elm_agent.softprompt import SoftPrompt
        from elm_agent.tasks import get_task

        self._model = model.native(ignore_end=True)
        task = get_task("math")
        prompts = [self._model.encode(task.messages(question)) for question in QUESTIONS]
        self._requests = [GenerationRequest(prompt_ids=ids, max_new_tokens=tokens) for ids in prompts]
        generator = torch.Generator().manual_seed(0)
        noise_VE = torch.randn(virtual_tokens, self._model.network.width, generator=generator) * 0.1
        self._with_memory = GenerationRequest(
            prompt_ids=prompts[0], max_new_tokens=tokens, prefix=SoftPrompt(noise_VE)
        )

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
        requests = [self._requests[0], self._with_memory] if both else [self._requests[0]]
        started = time.perf_counter()
        self._model.generate(requests)
        return time.perf_counter() - started


class PlainAnswers:
    """The same questions by transformers, one after the other."""

    def __init__(self, *, model: ModelChoice, tokens: int) -> None:
        import torch

        from elm_agent.models.engine import LocalModel
        from elm_agent.models.quiet import quiet
        from elm_agent.tasks import get_task

        plain, task = model.plain(), get_task("math")
        encode = LocalModel(plain.model, plain.tokenizer, plain.fingerprint).encode
        self._network: Any = plain.model
        self._quiet = quiet
        own = plain.model.generation_config
        self._options = type(own)(pad_token_id=own.pad_token_id, max_new_tokens=tokens, do_sample=False)
        own.eos_token_id = None  # or it would be filled in from here
        device = plain.model.get_input_embeddings().weight.device
        self._prompts = [torch.tensor([encode(task.messages(question))], device=device) for question in QUESTIONS]

    def one_by_one(self) -> float:
        """Tokens per second."""
        import torch

        started, tokens = time.perf_counter(), 0
        with torch.no_grad(), self._quiet():
            for ids in self._prompts:
                made = self._network.generate(
                    ids, attention_mask=torch.ones_like(ids), generation_config=self._options
                )
                tokens += made.shape[1] - ids.shape[1]
        return tokens / (time.perf_counter() - started)


def callers_name(count: int) -> str:
    return f"{count} caller{'s' * (count > 1)} at once"


def ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Median of (seconds of both) / (seconds of one), each pair measured one after the other."""
    ratios = sorted(both / one for one, both in pairs)
    middle = len(ratios) // 2
    return ratios[middle] if len(ratios) % 2 else (ratios[middle - 1] + ratios[middle]) / 2
