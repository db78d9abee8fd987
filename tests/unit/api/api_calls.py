"""Tokens of three holders, and what a test of the API says again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from elm_agent import Runtime
from elm_agent.api.access import Access, Holder
from elm_agent.api.serving import address, listen

ALICE, BOB, ADMIN = "alice-" + "a" * 20, "bob-" + "b" * 20, "admin-" + "c" * 20
HOLDERS = {ALICE: Holder(("alice", "default")), BOB: Holder(("bob",)), ADMIN: Holder()}
ACCESS = Access(HOLDERS)

Open = Callable[..., Runtime]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def failure(reply: Any, status: int) -> dict[str, str]:
    """The failure that the reply tells, whose one shape is checked."""
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["error"]
    error: dict[str, str] = reply.json()["error"]
    assert sorted(error) == ["message", "type"]
    assert error["message"]
    assert "\n" not in error["message"]
    return error


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of a real server of the application, in a thread of its own."""
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield address(listening)
        finally:
            server.should_exit = True
            thread.join()
