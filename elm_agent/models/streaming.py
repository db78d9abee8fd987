"""Text as it is generated: pieces that end at whole characters. Knows token ids and futures; nothing of networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from elm_agent.models.decoding import Row
from elm_agent.models.serving import Drawn, Reply, Tokens
from elm_agent.records import Generation

_HALF = "\N{REPLACEMENT CHARACTER}"


class TextStream(Iterator[str]):
    """The pieces of one answer in order; together they are its text. Close it, or leave its ``with`` block, to stop.

    ``decode``: the text of token ids without special tokens; ``finish``: the generation of a row, and its seconds.
    """

    def __init__(
        self,
        reply: Reply,
        tokens: Tokens,
        decode: Callable[[Sequence[int]], str],
        finish: Callable[[Row, float], Generation],
    ) -> None:
        self._reply = reply
        self._tokens = tokens
        self._taken: list[Drawn] = []
        self._finish = finish
        self._pieces = pieces(self._drawn(), decode)
        self._started = time.perf_counter()

    @property
    def tokens(self) -> int:
        """How many were taken so far, end token and all."""
        return len(self._taken)

    def __next__(self) -> str:
        """The next piece, when it is there. Raises what ended the row, if an error did."""
        try:
            return next(self._pieces)
        except StopIteration:
            if not self._reply.unwanted:
                self._reply.result()
            raise

    def result(self) -> Generation:
        """The whole generation, when it is there."""
        generation: Generation = self._reply.result()
        return generation

    def so_far(self) -> Generation | None:
        """What was taken, as if the answer ended here; None before its first token, or from an engine that scores
        rows only when they are whole."""
        logprobs = [drawn.logprob for drawn in self._taken if drawn.logprob is not None]
        certainties = [drawn.certainty for drawn in self._taken if drawn.certainty is not None]
        if not self._taken or len(logprobs) < len(self._taken):
            return None
        row = Row(
            max_new_tokens=len(self._taken),
            tokens=[drawn.token for drawn in self._taken],
            logprobs=logprobs,
            certainties=certainties,
            finished=True,
        )
        return self._finish(row, time.perf_counter() - self._started)

    def close(self) -> None:
        """Give the row up: it leaves the batch at the next token. Harmless afterwards."""
        self._reply.cancel()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _drawn(self) -> Iterator[int]:
        while (drawn := self._tokens.get()) is not None:
            self._taken.append(drawn)
            yield drawn.token


def pieces(tokens: Iterator[int], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """Text piece by piece. What a token adds depends on those before it, so a few of them are decoded again."""
    ids: list[int] = []
    start = told = 0  # tokens before ``start`` are done with; those before ``told`` have been given out
    for token in tokens:
        ids.append(token)
        before, now = decode(ids[start:told]), decode(ids[start:])
        if len(now) > len(before) and not now.endswith(_HALF):
            yield now[len(before) :]
            start, told = told, len(ids)
    rest = decode(ids[start:])[len(decode(ids[start:told])) :]
    if rest:
        yield rest
