"""One row of the engine as LangChain asks for it: pieces or a whole, sync or async, given up in time.

Knows the engine's requests; knows nothing of messages.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING

from elm_agent.protocols import GenerationRequest, LanguageModel
from elm_agent.records import Generation

if TYPE_CHECKING:
    from elm_agent.models.streaming import TextStream


class Row:
    """A row in flight. ``close`` it to give it up; harmless when it is done.

    A model without ``stream`` gives its text in one piece.

    Args:
        timeout: seconds after which the row is given up; None: never.
    """

    def __init__(
        self, model: LanguageModel, request: GenerationRequest, *, pieces: bool, timeout: float | None
    ) -> None:
        self._stream: TextStream | None = None
        self._future: Future[Generation] | None = None
        stream = getattr(model, "stream", None)
        if pieces and stream is not None:
            self._stream = stream(request)
        else:
            self._future = model.submit(request)
        self._told = False
        self._late = False
        self._timeout = timeout
        self._timer: threading.Timer | None = None
        if timeout is not None:
            self._timer = threading.Timer(timeout, self._expire)
            self._timer.daemon = True
            self._timer.start()

    @property
    def tokens(self) -> int:
        """How many tokens of a stream were taken; 0 for a whole."""
        return 0 if self._stream is None else self._stream.tokens

    def piece(self) -> str | None:
        """The next piece of text, when it is there; None after the last. Raises what ended the row."""
        if self._stream is not None:
            piece = next(self._stream, None)
            if piece is None and self._late:
                raise self._too_late()
            return piece
        if self._told:
            return None
        self._told = True
        return self.result().text

    async def apiece(self) -> str | None:
        """``piece`` that blocks no event loop; a caller that is cancelled gives the row up."""
        if self._stream is not None:
            return await asyncio.to_thread(self.piece)
        if self._told:
            return None
        self._told = True
        return (await self.aresult()).text

    def result(self) -> Generation:
        """The whole generation, when it is there."""
        try:
            return self._stream.result() if self._stream is not None else self._whole().result()
        except CancelledError:
            if self._late:
                raise self._too_late() from None
            raise

    def so_far(self) -> Generation | None:
        """What was taken of a stream, as if the answer ended here; None where that has no scores."""
        return None if self._stream is None else self._stream.so_far()

    async def aresult(self) -> Generation:
        if self._stream is not None:
            return await asyncio.to_thread(self.result)
        try:
            return await asyncio.wrap_future(self._whole())
        except (CancelledError, asyncio.CancelledError):
            if self._late:
                raise self._too_late() from None
            raise

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._stream is not None:
            self._stream.close()
        else:
            self._whole().cancel()

    def _whole(self) -> Future[Generation]:
        assert self._future is not None
        return self._future

    def _expire(self) -> None:
        self._late = True
        self.close()

    def _too_late(self) -> TimeoutError:
        return TimeoutError(f"the answer took longer than the timeout of {self._timeout:g} seconds: raise it")
