"""Tokens of three holders, and what a test of the API says again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from elm_agent import Runtime
from elm_agent.api.access import Access, Holder

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
