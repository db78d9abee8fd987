"""Events as a browser reads them (server-sent events), and work that ends when nobody waits for it any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic_core import to_json

from elm_agent.api.failures import told
from elm_agent.api.verbs import WAITING, Event

Made = TypeVar("Made")

_STILL = b": still answering\n\n"


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
        await asyncio.wait({working, leaving})


async def event_stream(events: AsyncGenerator[Event, None]) -> StreamingResponse:
    """A response of these events. What is raised before the first of them is raised here; later it is an event."""
    first = WAITING
    while first is WAITING:
        first = await anext(events)
    return _Events(first, events)


class _Events(StreamingResponse):
    """Closes its events however it ends: a client that goes away leaves them half read, or not read at all."""

    def __init__(self, first: Event, events: AsyncGenerator[Event, None]) -> None:
        self._events = events
        self._written = _written(first, events)
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(self._written, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._written.aclose()
            await self._events.aclose()


async def _written(first: Event, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    yield as_event(*first)
    try:
        async for event in events:
            yield _STILL if event is WAITING else as_event(*event)
    except Exception as error:  # noqa: BLE001 - the status is sent: this is the way left to say it
        yield as_event("error", told(error))


def as_event(name: str, detail: Any) -> bytes:
    """One event; its data is one line of JSON, numbers that are not finite become null."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), to_json(detail, inf_nan_mode="null"))


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
