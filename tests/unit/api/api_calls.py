"""Tokens of three holders, and what a test of the API says again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from elm_agent import Runtime
from elm_agent.api.access import Access, Holder
from elm_agent.api.serving import address, listen
from elm_agent.models.engine import LocalModel
from elm_agent.models.streaming import TextStream
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Generation

ALICE, BOB, ADMIN = "alice-" + "a" * 20, "bob-" + "b" * 20, "admin-" + "c" * 20
HOLDERS = {ALICE: Holder(("alice", "default")), BOB: Holder(("bob",)), ADMIN: Holder()}
ACCESS = Access(HOLDERS)

Open = Callable[..., Runtime]

LONG = 6_000  # tokens, minutes of them: a test that waits for the last has failed
DEADLINE = 120.0


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


class Watched(LocalModel):
    """A model whose rows never end by themselves; ``asked`` are those that were begun."""

    asked: list[TextStream | Future[Generation]]

    def stream(self, request: GenerationRequest) -> TextStream:
        self.asked.append(super().stream(request))
        return self.asked[-1]  # type: ignore[return-value]

    def submit(self, request: GenerationRequest) -> Future[Generation]:
        self.asked.append(super().submit(request))
        return self.asked[-1]  # type: ignore[return-value]


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def given_up(row: TextStream | Future[Generation]) -> bool:
    future = row._reply if isinstance(row, TextStream) else row
    if not future.done():
        return False
    with pytest.raises(CancelledError):
        future.result()
    return True


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
