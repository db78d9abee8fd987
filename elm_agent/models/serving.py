"""The thread that draws tokens: whoever submits a row joins the rows in flight, at any token where the network can.

Answers and the rollouts of memories that are being trained are rows of one batch. Knows rows, futures and the
lease; knows nothing of tokenizers, text or memories.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch

from elm_agent.errors import ModelError
from elm_agent.models.decoding import Decoder, Row
from elm_agent.models.lease import ModelLease
from elm_agent.models.memory import row_bytes, spare_bytes
from elm_agent.models.network import Network, Prefix
from elm_agent.models.reading import Reader
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Generation


class Drawn(NamedTuple):
    """One token of a row, and its scores in nats; None where they come when the row is whole."""

    token: int
    logprob: float | None = None
    certainty: float | None = None


Tokens = queue.SimpleQueue[Drawn | None]  # the tokens of one row as they are drawn, then None


class Reply(Future[Any]):
    """A row's future. Cancelled while it is generated, the row leaves at its next token and nobody else notices."""

    unwanted = False

    def cancel(self) -> bool:
        """False when the answer is already there."""
        self.unwanted = True
        return super().cancel() or not self.done()


@dataclass(slots=True, eq=False)
class Start:
    """One row already read, with which the rollouts of a group begin. Its logits are those of the first token.

    ``embeds_TE``: what was read, for an engine that reads it again; None where it is more than embeddings.
    """

    prefix: Prefix
    logits_1V: torch.Tensor
    embeds_TE: torch.Tensor | None = None


@dataclass(slots=True, eq=False)
class _Flight:
    source: GenerationRequest | Start
    row: Row
    tokens: Tokens | None = None
    reply: Reply = field(default_factory=Reply)
    started: float = 0.0
    waited: bool = False  # once, for rows whose text is watched
    told: int = 0  # tokens already put into ``tokens``; a row that runs again draws the same ones

    def tell(self) -> None:
        if self.tokens is not None:
            row = self.row
            for n in range(self.told, len(row.tokens)):
                self.tokens.put(Drawn(row.tokens[n], row.logprobs[n], row.certainties[n]))
        self.told = max(self.told, len(self.row.tokens))

    def end(self, outcome: object) -> None:
        if isinstance(outcome, BaseException):
            self.reply.set_exception(outcome)
        else:
            self.reply.set_result(outcome)
        if self.tokens is not None:
            self.tokens.put(None)


class Serving:
    """Draws the tokens of answers and rollouts on a thread of its own. Close it to stop the thread.

    Args:
        embed: the embeddings (T, E) of a request, with the soft prompt if it has one.
        finish: the generation of an answer's row that is done and the seconds it took; a rollout's row is its result.
        context_length: most positions of a row.
        max_rows: most answers in flight, and most rollouts beside them.
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
        self._reader = Reader(network)
        self._finish = finish
        self._context_length = context_length
        self._max_rows = max_rows
        self._join_window = join_window
        self._arrived = threading.Condition()
        self._answers: deque[_Flight] = deque()
        self._rollouts: deque[_Flight] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def context_length(self) -> int:
        """Most positions of a row."""
        return self._context_length

    def submit(self, request: GenerationRequest, tokens: Tokens | None = None) -> Reply:
        """Queue one answer. Raises ``ModelError`` when closed."""
        flight = _Flight(request, Row(max_new_tokens=request.max_new_tokens), tokens)
        self._queue(self._answers, [flight])
        self._lease.expect_answers(1)
        return flight.reply

    def submit_group(self, start: Start, rows: Sequence[Row]) -> list[Reply]:
        """Queue rollouts of one start; they give way to answers and to updates. Raises ``ModelError`` when closed."""
        flights = [_Flight(start, row) for row in rows]
        self._queue(self._rollouts, flights)
        return [flight.reply for flight in flights]

    def close(self) -> None:
        """Finish what is queued and stop the thread. Idempotent."""
        with self._arrived:
            self._closed = True
            thread, self._thread = self._thread, None
            self._arrived.notify_all()
        if thread is not None:
            thread.join()

    # --- the thread ----------------------------------------------------------------------------------------

    def _queue(self, waiting: deque[_Flight], flights: Sequence[_Flight]) -> None:
        with self._arrived:
            if self._closed:
                raise ModelError("the model is closed: open a new runtime")
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name="elm-engine", daemon=True)
                thread.start()  # where there can be no thread, nobody waits for it
                self._thread = thread
            waiting.extend(flights)
            self._arrived.notify_all()

    def _serve(self) -> None:
        while self._work():
            self._run([], company=True)

    def _work(self) -> bool:
        """Wait for rows and their company; False when closed and nothing is left."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._answers or self._rollouts or self._closed)
            if not self._closed:
                self._arrived.wait_for(
                    lambda: self._closed or len(self._answers) >= self._max_rows, timeout=self._join_window
                )
            return bool(self._answers or self._rollouts)

    def _run(self, aboard: list[_Flight], *, company: bool) -> None:
        """Draw these rows to their ends, and with ``company`` those that come meanwhile."""
        try:
            with self._lease.serving() as run:
                run(partial(self._fly, aboard, company=company))
        except BaseException as error:  # noqa: BLE001 - it belongs to the callers, who get it from their futures
            traceback.clear_frames(error.__traceback__)  # they hold the rows' tensors: memory for what comes next
            if not aboard:
                self._refuse(error)
                return
            if len(aboard) == 1:
                aboard[0].end(error)
                return
        # Too many rows for the memory, or a bad one among them: half of them, and so on. They draw the same tokens.
        half = len(aboard) // 2
        for part in (aboard[:half], aboard[half:]):
            if part:
                self._run(part, company=False)

    def _refuse(self, error: BaseException) -> None:
        """Nobody could be taken on: the first who wait, rollouts before answers, learn why. The others come next."""
        with self._arrived:
            waiting = self._rollouts or self._answers
            first = [flight for flight in waiting if flight.source is waiting[0].source]
            for flight in first:
                waiting.remove(flight)
        if waiting is self._answers:
            self._lease.expect_answers(-len(first))
        for flight in _wanted(first):
            flight.end(error)

    def _fly(self, aboard: list[_Flight], *, company: bool) -> None:
        """Take on, step and let go until nobody is aboard. Whoever is still in ``aboard`` has no result yet."""
        decoder = Decoder(self._network, self._end_ids)
        waiting = list(aboard)
        while True:
            if company and decoder.open:
                arrivals = self._arrivals(aboard)
                aboard += arrivals
                waiting += arrivals
            while waiting and decoder.open:
                now, later = self._turns(waiting)
                waiting = [*self._board(decoder, now), *later]
                if later:
                    break
            if not aboard:
                return
            decoder.step()
            for flight in list(aboard):
                flight.tell()
                if flight.reply.unwanted or not flight.row.going:
                    outcome = self._outcome(flight)  # may raise, and then it is still aboard
                    flight.row.dropped = True
                    aboard.remove(flight)
                    flight.end(outcome)
            waiting = [flight for flight in waiting if flight in aboard]

    def _arrivals(self, aboard: Sequence[_Flight]) -> list[_Flight]:
        """Those to take on now: every answer for which there is a row, and the rollouts that fit into memory."""
        answering = sum(isinstance(flight.source, GenerationRequest) for flight in aboard)
        with self._arrived:
            # It may raise: before any is taken.
            room = 0 if self._lease.wanted_alone else self._rollout_room(len(aboard) - answering, alone=not aboard)
            answers = _taken(self._answers, self._max_rows - answering)
            rollouts = _taken(self._rollouts, room)
        if answers:
            self._lease.expect_answers(-len(answers))
        return _wanted([*answers, *rollouts])

    def _rollout_room(self, drawing: int, *, alone: bool) -> int:
        if not self._rollouts:
            return 0
        first, spare = self._rollouts[0], spare_bytes(self._network.device)
        assert isinstance(first.source, Start)
        positions = int(first.source.prefix.mask_BL.shape[1]) + first.row.max_new_tokens
        fitting = self._max_rows if spare is None else spare // 2 // row_bytes(first.source.prefix, positions)
        return max(min(self._max_rows - drawing, fitting), int(alone))

    def _turns(self, waiting: Sequence[_Flight]) -> tuple[list[_Flight], list[_Flight]]:
        """Who is read now, and who once those have drawn a token: plain rows whose text somebody watches go first."""
        watched = [flight for flight in waiting if flight.tokens is not None and _is_plain(flight.source)]
        if not watched or self._network.why_slow is not None:  # there nobody joins a batch that has begun
            return list(waiting), []
        later = [flight for flight in waiting if flight not in watched and not flight.waited]
        for flight in later:
            flight.waited = True
        return [flight for flight in waiting if flight not in later], later

    @torch.no_grad()
    def _board(self, decoder: Decoder, flights: Sequence[_Flight]) -> list[_Flight]:
        """Take on answers that are read together, or the rollouts of one start; returns those who still wait."""
        source = flights[0].source
        if isinstance(source, Start):
            group = [flight for flight in flights if flight.source is source]
            prefix, logits_BV = source.prefix, source.logits_1V
        else:
            asking = [(flight, flight.source) for flight in flights if isinstance(flight.source, GenerationRequest)]
            taken, prefix, logits_BV = self._reader.read(
                [request for _, request in asking], self._embed, to_draw=True
            )
            group = [asking[index][0] for index in taken]
        started = time.perf_counter()
        for flight, length in zip(group, prefix.mask_BL.sum(dim=1).expand(len(group)).tolist(), strict=True):
            flight.row, flight.started = self._row(flight, length), started
        decoder.join(prefix, logits_BV, [flight.row for flight in group])
        return [flight for flight in flights if flight not in group]

    def _row(self, flight: _Flight, length: int) -> Row:
        asked = flight.row if isinstance(flight.source, Start) else flight.source
        limit = min(asked.max_new_tokens, self._context_length - length)
        drafts = asked.drafts if isinstance(asked, Row) else None
        return Row(max_new_tokens=limit, temperature=asked.temperature, seed=asked.seed, drafts=drafts)

    def _outcome(self, flight: _Flight) -> object:
        if flight.reply.unwanted:
            return CancelledError()
        if isinstance(flight.source, Start):
            return flight.row
        try:
            return self._finish(flight.row, time.perf_counter() - flight.started)
        except ModelError as error:  # the row's own fault: drawn again it would end the same way
            return error


def _is_plain(source: GenerationRequest | Start) -> bool:
    return isinstance(source, GenerationRequest) and source.prefix is None


def _taken(waiting: deque[_Flight], most: int) -> list[_Flight]:
    return [waiting.popleft() for _ in range(min(most, len(waiting)))]


def _wanted(flights: list[_Flight]) -> list[_Flight]:
    """Those whose callers have not given up while they waited."""
    wanted = []
    for flight in flights:
        if flight.reply.set_running_or_notify_cancel():
            wanted.append(flight)
        elif flight.tokens is not None:
            flight.tokens.put(None)
    return wanted
