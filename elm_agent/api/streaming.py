"""Events as a browser reads them (server-sent events), and work that ends when nobody waits for it any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic_core import to_json

from elm_agent.api.failures import told

Event = tuple[str, dict[str, Any]]
Made = TypeVar("Made")

PING_SECONDS = 15.0  # of silence, after which proxies may take a connection for dead
_PING = b": still answering\n\n"


class Gone(Exception):
    """The client went away before the answer was there."""


async def while_there(request: Request, work: Awaitable[Made]) -> Made:
    """What ``work`` makes. When the client goes away first, the work is cancelled. Raises ``Gone``."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def event_stream(events: AsyncGenerator[Event, None]) -> StreamingResponse:
    """A response of these events. What is raised before the first of them is raised here; later it is an event."""
    first = await anext(events)
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return _Events(_written(first, events), media_type="text/event-stream", headers=headers)


class _Events(StreamingResponse):
    """Closes its events however it ends: a client that goes away leaves them half read."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if isinstance(self.body_iterator, AsyncGenerator):
                await self.body_iterator.aclose()


async def _written(first: Event, events: AsyncGenerator[Event, None]) -> AsyncIterator[bytes]:
    yield as_event(*first)
    coming: asyncio.Future[Event] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({coming}, timeout=PING_SECONDS)
            if not done:
                yield _PING
                continue
            event, coming = coming.result(), None
            yield as_event(*event)
    except StopAsyncIteration:
        return
    except Exception as error:  # noqa: BLE001 - the status is sent: this is the way left to say it
        yield as_event("error", told(error))
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await events.aclose()


def as_event(name: str, detail: Any) -> bytes:
    """One event; its data is one line of JSON, numbers that are not finite become null."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), to_json(detail, inf_nan_mode="null"))


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
