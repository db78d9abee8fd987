"""Rows whose tokens another engine draws. What is known of them besides comes from our own network.

Their scores, so that confidences of answers mean the same whoever drew them, and every gradient. Knows event loops
and futures; knows nothing of the other engine but ``TokenSource``.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any

import torch

from elm_agent.errors import InputError, ModelError
from elm_agent.models.decoding import Row, token_scores
from elm_agent.models.drawing import TokenSource
from elm_agent.models.lease import ModelLease
from elm_agent.models.network import Network
from elm_agent.models.serving import Drawn, Reply, Start, Tokens
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Generation
from elm_agent.softprompt import SoftPrompt

_SCORED_AT_ONCE = 128  # positions whose logits are in memory together


class OutsideReply(Reply):
    """A row's future. Cancelled, the other engine gives the row up at once."""

    def __init__(self, drawing: Future[Any]) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()
        self._drawing = drawing

    def cancel(self) -> bool:
        """False when the answer is already there."""
        in_time = super().cancel()
        self._drawing.cancel()
        return in_time


class OutsideDrawing:
    """A ``Drawing`` on a ``TokenSource``, which it owns. Close it to stop both.

    The engine has weights of its own, so it draws while the network learns. Rollouts carry its log-probabilities,
    by which the update corrects; an answer is scored by one pass of the network, which goes before updates.
    """

    def __init__(
        self,
        source: TokenSource,
        network: Network,
        lease: ModelLease,
        *,
        end_ids: Sequence[int],
        embed: Callable[[GenerationRequest], torch.Tensor],
        finish: Callable[[Row, float], Generation],
        context_length: int,
    ) -> None:
        self._source = source
        self._network = network
        self._lease = lease
        self._end_ids = tuple(end_ids)
        self._embed = embed
        self._finish = finish
        self.context_length = min(context_length, source.context_length)
        self._scoring = ThreadPoolExecutor(1, thread_name_prefix="elm-scores")
        self._closing = threading.Lock()
        self._closed = False
        self._flying: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="elm-outside", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, tokens: Tokens | None = None) -> Reply:
        """See ``Drawing``. Raises ``InputError`` for what this engine cannot read."""
        if not isinstance(request.prefix, SoftPrompt | None):
            raise _no_prompt()
        return self._launch(self._answer(request, tokens), tokens)

    def submit_group(self, start: Start, rows: Sequence[Row]) -> list[Reply]:
        """See ``Drawing``. Raises ``InputError`` for what this engine cannot read."""
        if start.embeds_TE is None:
            raise _no_prompt()
        return [self._launch(self._rollout(start.embeds_TE, row), None) for row in rows]

    def close(self) -> None:
        """Finish what is queued, then stop the engine. Idempotent."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        try:
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._scoring.shutdown()

    # --- on the loop ---------------------------------------------------------------------------------------

    def _launch(self, row: Coroutine[Any, Any, object], tokens: Tokens | None) -> Reply:
        with self._closing:
            if self._closed:
                row.close()
                raise ModelError("the model is closed: open a new runtime")
            drawing = asyncio.run_coroutine_threadsafe(row, self._loop)
        reply = OutsideReply(drawing)

        def end(drawing: Future[Any]) -> None:
            _settle(reply, drawing)
            if tokens is not None:
                tokens.put(None)

        drawing.add_done_callback(end)  # called also for a row that is given up before it begins
        return reply

    async def _stop(self) -> None:
        """Every row that was launched has taken its first step, so it is known here."""
        await asyncio.gather(*self._flying, return_exceptions=True)  # their replies have the errors
        try:
            self._source.close()
        finally:
            left = asyncio.all_tasks() - {asyncio.current_task()}  # the engine's own
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _answer(self, request: GenerationRequest, tokens: Tokens | None) -> Generation:
        started = time.perf_counter()
        row = Row(max_new_tokens=request.max_new_tokens, temperature=request.temperature, seed=request.seed)
        embeds_TE = self._embed(request)
        await self._draw(embeds_TE, row, tokens, urgent=True)
        await self._loop.run_in_executor(self._scoring, self._score, embeds_TE, row)
        return self._finish(row, time.perf_counter() - started)

    async def _rollout(self, embeds_TE: torch.Tensor, row: Row) -> Row:
        await self._draw(embeds_TE, row, None, urgent=False)
        return row

    async def _draw(self, embeds_TE: torch.Tensor, row: Row, tokens: Tokens | None, *, urgent: bool) -> None:
        if (flight := asyncio.current_task()) is not None:
            self._flying.add(flight)
            flight.add_done_callback(self._flying.discard)
        drawn = self._source.draw(
            embeds_TE.detach(),
            max_new_tokens=min(row.max_new_tokens, self.context_length - len(embeds_TE)),
            temperature=row.temperature,
            seed=row.seed,
            end_ids=self._end_ids,
            urgent=urgent,
        )
        async with aclosing(drawn):
            async for ids, logprobs in drawn:
                row.tokens += ids
                row.sampler_logprobs += logprobs
                if tokens is not None:
                    for token in ids:
                        tokens.put(Drawn(token))
        if not row.tokens:
            raise ModelError("the engine ended a row before its first token: its log says why")
        row.finished = row.tokens[-1] in self._end_ids

    def _score(self, embeds_TE: torch.Tensor, row: Row) -> None:
        with self._lease.answering() as run:
            row.logprobs, row.certainties = run(partial(scores, self._network, embeds_TE, row.tokens))


@torch.no_grad()
def scores(network: Network, embeds_TE: torch.Tensor, tokens: Sequence[int]) -> tuple[list[float], list[float]]:
    """Log-probability of each token after the embeddings, at temperature 1, and self-certainty there, in nats."""
    prefix, logits_1V = network.read([embeds_TE])
    logprobs: list[float] = []
    certainties: list[float] = []
    for first in range(0, len(tokens), _SCORED_AT_ONCE):
        part_T = torch.tensor(tokens[first : first + _SCORED_AT_ONCE], device=network.device)
        after_TV = network.extend(prefix, part_T[None])[0]
        parts = token_scores(torch.cat([logits_1V, after_TV[:-1]]), part_T)
        logprobs += parts[0].tolist()
        certainties += parts[1].tolist()
        logits_1V = after_TV[-1:]
    return logprobs, certainties


def _settle(reply: OutsideReply, drawing: Future[Any]) -> None:
    if drawing.cancelled():
        reply.set_exception(CancelledError())
    elif error := drawing.exception():
        reply.set_exception(error)
    else:
        reply.set_result(drawing.result())


def _no_prompt() -> InputError:
    return InputError(
        "this engine reads soft prompts and text alone: other parameterisations need the setting engine 'native'"
    )
