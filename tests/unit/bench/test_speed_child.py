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
