"""A measuring process: what it answers, and how its failures arrive."""

from __future__ import annotations

import os

import pytest

from elm_agent.bench.speed_child import Child
from elm_agent.errors import ModelError, ModelUnavailable


class Doubtful:
    """What a child may be asked to do."""

    def __init__(self, *, fine: bool) -> None:
        if not fine:
            raise ModelUnavailable("no such model")

    def add(self, one: int, other: int) -> int:
        return one + other

    def spins(self) -> str | None:
        return os.environ.get("GOMP_SPINCOUNT")

    def fall(self) -> None:
        raise ValueError("two\nlines")

    def leave(self) -> None:
        os._exit(9)


def test_a_child_answers_and_says_in_one_sentence_what_went_wrong() -> None:
    child = Child(Doubtful, fine=True)
    assert child.ask("add", 2, 3) == 5
    with pytest.raises(ModelError, match="ValueError: two lines"):
        child.ask("fall")
    assert child.ask("add", 1, 1) == 2
    with pytest.raises(ModelError, match="ended with status 9"):
        child.ask("leave")
    child.close()
    child.close()
    with pytest.raises(ModelUnavailable, match="no such model"):
        Child(Doubtful, fine=False)


def test_threads_wait_alike_in_every_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in one that this library opens no model in; what the user has set stays."""
    for given, expected in ((None, "3000"), ("77", "77")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        if given is not None:
            monkeypatch.setenv("GOMP_SPINCOUNT", given)
        child = Child(Doubtful, fine=True)
        assert child.ask("spins") == expected
        child.close()
