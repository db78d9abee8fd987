"""The thread that answers: whoever submits a row joins the rows in flight, at any token where the network allows it.

Knows rows, futures and the lease; knows nothing of tokenizers, text or memories.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

import torch

from elm_agent.errors import ModelError
from elm_agent.models.decoding import Decoder, Row
from elm_agent.models.lease import ModelLease
from elm_agent.models.network import Network
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Generation

Tokens = queue.SimpleQueue[int | None]  # the tokens of one row as they are drawn, then None


class Reply(Future[Generation]):
    """A row's future. Cancelled while it is generated, the row leaves at its next token and nobody else notices."""

    unwanted = False

    def cancel(self) -> bool:
        """False when the answer is already there."""
        self.unwanted = True
        return super().cancel() or not self.done()


@dataclass(slots=True, eq=False)
class _Flight:
    request: GenerationRequest
    reply: Reply
    tokens: Tokens | None
    row: Row = field(default_factory=lambda: Row(max_new_tokens=0))
    started: float = 0.0
    told: int = 0  # tokens already put into ``tokens``; a row that runs again draws the same ones

    def tell(self) -> None:
        if self.tokens is not None:
            for token in self.row.tokens[self.told :]:
                self.tokens.put(token)
        self.told = max(self.told, len(self.row.tokens))

    def end(self, outcome: Generation | BaseException) -> None:
        if isinstance(outcome, BaseException):
            self.reply.set_exception(outcome)
        else:
            self.reply.set_result(outcome)
        if self.tokens is not None:
            self.tokens.put(None)


class Serving:
    """Answers rows on a thread of its own. Close it to stop the thread.

    Args:
        embed: the embeddings (T, E) of a request, soft prompt and all.
        finish: the generation of a row that is done and the seconds it took.
        context_length: most positions of a row.
        max_rows: most rows in flight.
        join_window: seconds that the first row waits for company.
    """

    def __init__(
        self,
        network: Network,
        lease: ModelLease,
        *,
        end_ids: Sequence[int],
        embed: Callable[[GenerationRequest], torch.Tensor],
        finish: Callable[[Row, float], Generation],
        context_length: int,
        max_rows: int,
        join_window: float,
    ) -> None:
        self._network = network
        self._lease = lease
        self._end_ids = tuple(end_ids)
        self._embed = embed
        self._finish = finish
        self._context_length = context_length
        self._max_rows = max_rows
        self._join_window = join_window
        self._pending: queue.SimpleQueue[_Flight | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, request: GenerationRequest, tokens: Tokens | None = None) -> Reply:
        """Queue one row. Raises ``ModelError`` when closed."""
        flight = _Flight(request, Reply(), tokens)
        with self._starting:  # so that nothing is queued behind the end that ``close`` puts there
            if self._closed:
                raise ModelError("the model is closed: open a new runtime")
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="elm-engine", daemon=True)
                self._thread.start()
            self._pending.put(flight)
        return flight.reply

    def close(self) -> None:
        """Finish what is queued and stop the thread. Idempotent."""
        with self._starting:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._pending.put(None)
            thread.join()

    def _serve(self) -> None:
        while (first := self._pending.get()) is not None:
            self._run(_wanted([first, *self._arrivals(self._max_rows - 1, self._join_window)]), company=True)

    def _arrivals(self, room: int, window: float = 0.0) -> list[_Flight]:
        """Whoever came, and whoever comes within ``window`` seconds; at most ``room``."""
        found: list[_Flight] = []
        deadline = time.monotonic() + window
        while len(found) < room:
            try:
                flight = self._pending.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if flight is None:  # closing: serve what came before
                self._pending.put(None)
                break
            found.append(flight)
        return found

    def _run(self, aboard: list[_Flight], *, company: bool) -> None:
        """Answer these, and with ``company`` whoever comes meanwhile."""
        try:
            with self._lease.answering():
                self._fly(aboard, company=company)
        except BaseException as error:  # noqa: BLE001 - it belongs to the callers, who get it from their futures
            traceback.clear_frames(error.__traceback__)  # they hold the rows' tensors: memory for what comes next
            if len(aboard) == 1:
                aboard[0].end(error)
                return
        for flight in aboard:  # one row must not cost the others their answers
            self._run([flight], company=False)

    def _fly(self, aboard: list[_Flight], *, company: bool) -> None:
        """Take on, step and let go until nobody is aboard. Whoever is still in ``aboard`` has no answer yet."""
        decoder = Decoder(self._network, self._end_ids)
        boarding = list(aboard)
        while aboard:
            if boarding:
                self._board(decoder, boarding)
            decoder.step()
            for flight in list(aboard):
                flight.tell()
                if flight.reply.unwanted or not flight.row.going:
                    outcome = self._outcome(flight)  # may raise, and then it is still aboard
                    flight.row.dropped = True
                    aboard.remove(flight)
                    flight.end(outcome)
            boarding = []
            if company and decoder.open:
                boarding = _wanted(self._arrivals(self._max_rows - len(aboard)))
                aboard += boarding

    @torch.no_grad()
    def _board(self, decoder: Decoder, flights: Sequence[_Flight]) -> None:
        started = time.perf_counter()
        prefix, logits_BV = self._network.read([self._embed(flight.request) for flight in flights])
        for flight, length in zip(flights, prefix.mask_BL.sum(dim=1).tolist(), strict=True):
            request = flight.request
            limit = min(request.max_new_tokens, self._context_length - length)
            flight.row = Row(max_new_tokens=limit, temperature=request.temperature, seed=request.seed)
            flight.started = started
        decoder.join(prefix, logits_BV, [flight.row for flight in flights])

    def _outcome(self, flight: _Flight) -> Generation | BaseException:
        if flight.reply.unwanted:
            return CancelledError()
        return self._finish(flight.row, time.perf_counter() - flight.started)


def _wanted(flights: list[_Flight]) -> list[_Flight]:
    """Those whose callers have not given up while they waited."""
    wanted = []
    for flight in flights:
        if flight.reply.set_running_or_notify_cancel():
            wanted.append(flight)
        elif flight.tokens is not None:
            flight.tokens.put(None)
    return wanted
