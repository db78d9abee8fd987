"""Answers per second of this library's engine and of plain ``model.generate``, each in a process of its own.

Both are asked the same: every second question with a memory, and answers of three lengths in turn. No question is
asked twice, for what was read of it before need not be read again.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elm_agent.bench.speed_machine import ModelChoice
from elm_agent.protocols import GenerationRequest

if TYPE_CHECKING:
    import torch

    from elm_agent.softprompt import SoftPrompt

CALLERS = (1, 4, 16)
PLAIN = "generate"  # who asks, beside "N callers"
ASKS = 16  # of a turn
PAIRS = 4  # of one answer and both, in a turn: each takes half a second, and a moment's noise shows


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is asked for: so many tokens, the end token ignored."""

    question: str
    with_memory: bool
    tokens: int


def lengths_of(tokens: int) -> tuple[int, int, int]:
    return tokens, 2 * tokens, max(tokens // 2, 1)


def questions() -> Iterator[str]:
    """Questions of the same length, each of them once."""
    for one, other in itertools.product(range(10, 100), repeat=2):
        yield f"What is {one} times {other}?"


def asks_of(tokens: int, asked: Iterator[str]) -> list[Ask]:
    """The next questions; with and without a memory there are all lengths."""
    lengths = lengths_of(tokens)
    return [Ask(next(asked), number % 2 == 1, lengths[number % 3]) for number in range(ASKS)]


@dataclass(frozen=True, slots=True)
class Both:
    """Seconds of one answer, and of it and one with a memory asked for at once; questions differ.

    ``met``: with a memory that was read before; ``new``: with one that was not.
    """

    one: float
    met: float
    new: float


class EngineAnswers:
    """Callers on threads, each with one question at a time until all are answered; end tokens are ignored."""

    def __init__(self, *, model: ModelChoice, tokens: int, virtual_tokens: int) -> None:
        from elm_agent.softprompt import SoftPrompt
        from elm_agent.tasks import get_task

        self._model, self._task, self._tokens = model.native(ignore_end=True), get_task("math"), tokens
        width = self._model.network.width
        self._memories = (SoftPrompt(_noise(virtual_tokens, width, seed)) for seed in itertools.count())
        self._memory, self._questions = next(self._memories), questions()

    def _request(self, question: str, memory: SoftPrompt | None, tokens: int) -> GenerationRequest:
        ids = self._model.encode(self._task.messages(question))
        return GenerationRequest(prompt_ids=ids, prefix=memory, max_new_tokens=tokens)

    def callers(self, count: int) -> float:
        """Tokens per second of all callers together."""
        asks = asks_of(self._tokens, self._questions)
        left = [self._request(ask.question, self._memory if ask.with_memory else None, ask.tokens) for ask in asks]
        lock, tokens, errors = threading.Lock(), [0], list[Exception]()

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

    def both(self) -> Both:
        """Each after the others."""
        return Both(*(self._seconds(memories) for memories in ([], [self._memory], [next(self._memories)])))

    def _seconds(self, memories: Sequence[SoftPrompt]) -> float:
        """Of an answer without a memory and one with each of these."""
        question = next(self._questions)
        requests = [self._request(question, memory, self._tokens) for memory in (None, *memories)]
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
        self._task, self._tokens, self._questions = task, tokens, questions()
        self._encode = LocalModel(plain.model, plain.tokenizer, plain.fingerprint).encode
        self._network: Any = plain.model
        self._quiet = quiet
        own = plain.model.generation_config
        self._options = type(own)(pad_token_id=own.pad_token_id, do_sample=False)
        own.eos_token_id = None  # or it would be filled in from here
        weight_VE: Any = plain.model.get_input_embeddings().weight
        self._memory_VE = _noise(virtual_tokens, weight_VE.shape[1], seed=0).to(weight_VE.device, weight_VE.dtype)

    def one_by_one(self) -> float:
        """Tokens per second."""
        import torch

        asks = [(ask, self._encode(self._task.messages(ask.question))) for ask in self._next()]
        started = time.perf_counter()
        with torch.no_grad(), self._quiet():
            tokens = sum(self._drawn(ask, ids) for ask, ids in asks)
        return tokens / (time.perf_counter() - started)

    def _next(self) -> list[Ask]:
        return asks_of(self._tokens, self._questions)

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


def _noise(virtual_tokens: int, width: int, seed: int) -> torch.Tensor:
    """A memory (V, E) for measuring: what it says does not matter."""
    import torch

    return torch.randn(virtual_tokens, width, generator=torch.Generator().manual_seed(seed)) * 0.1


def callers_name(count: int) -> str:
    return f"{count} caller{'s' * (count > 1)} at once"
