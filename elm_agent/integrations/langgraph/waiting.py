"""Waits for a row that was begun, telling its text as it is drawn where that is wanted. Knows futures and threads.

Whoever stops waiting gives the row up: it leaves its batch at the next token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context

from elm_agent.protocols import RowStream
from elm_agent.records import Generation

Tell = Callable[[str], None]
"""Hears each piece of a row's text, on whatever thread waits for it."""

# A reader sleeps until its row's next token, so it must not take a thread of the pool in which stores work.
_READERS = ThreadPoolExecutor(max_workers=1024, thread_name_prefix="elm-pieces")


def finished(begun: Future[Generation] | RowStream, tell: Tell) -> Generation:
    """Wait for the row; ``tell`` hears each piece of a stream."""
    if isinstance(begun, Future):
        return begun.result()
    try:
        for piece in begun:
            tell(piece)
        return begun.result()
    finally:
        begun.close()


async def begun_row(begin: Callable[[], Future[Generation] | RowStream]) -> Future[Generation] | RowStream:
    """``begin()`` on a thread. Cancelled meanwhile, the row that comes of it is given up as soon as it is there."""
    beginning = asyncio.ensure_future(asyncio.to_thread(begin))
    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        beginning.add_done_callback(_unwanted)
        raise


async def afinished(begun: Future[Generation] | RowStream, tell: Tell) -> Generation:
    """As ``finished``, for an event loop."""
    if isinstance(begun, Future):
        return await asyncio.wrap_future(begun)
    run = copy_context().run  # the run's own context goes along, as `asyncio.to_thread` would have it
    try:
        return await asyncio.get_running_loop().run_in_executor(_READERS, run, finished, begun, tell)
    finally:
        begun.close()


def _unwanted(beginning: asyncio.Future[Future[Generation] | RowStream]) -> None:
    if beginning.cancelled() or beginning.exception() is not None:
        return
    begun = beginning.result()
    if isinstance(begun, Future):
        begun.cancel()
    else:
        begun.close()
