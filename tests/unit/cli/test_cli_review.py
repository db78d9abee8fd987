"""``review``: what waits is listed, shown, decided and taken back; what does not is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Elm, assert_one_sentence, error_of

from elm_agent.records import EventKind, MemoryState, Review
from elm_agent.runtime import open_bank
from elm_agent.settings import Settings
from elm_agent.storage.bank import Bank

pytestmark = pytest.mark.usefixtures("fake")
QUESTION = "What is 9 times 9?"


@pytest.fixture
def bank(elm: Elm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bank]:
    """The bank in ./.elm with one memory, which waits."""
    monkeypatch.setenv("ELM_REVIEW__MEMORIES", "true")
    monkeypatch.setenv("ELM_REVIEW__OVERRIDES", "queue")
    assert elm("ask", QUESTION, "--wait").exit_code == 0
    opened = open_bank(Settings(home=tmp_path / ".elm"))
    yield opened
    opened.close()


def waiting_memory(elm: Elm) -> str:
    (memory,) = json.loads(elm("review", "list", "--json").stdout)["memories"]
    return str(memory["id"])


def deferred(elm: Elm) -> str:
    """A use whose answer waits."""
    told: dict[str, Any] = json.loads(elm("ask", "What is 6 times 7?", "--no-learn", "--json").stdout)
    assert (told["route"], told["answer"]) == ("deferred", "43")
    return str(told["use_id"])


def test_a_memory_waits_is_approved_and_serves(elm: Elm, bank: Bank) -> None:
    memory = waiting_memory(elm)
    listed = elm("review", "list").stdout
    assert memory in listed
    assert "waiting for a review in 'default': memories 1, answers 0" in listed
    shown = elm("review", "show", memory).stdout
    assert QUESTION in shown
    assert "awaits review" in shown
    assert json.loads(elm("ask", QUESTION, "--no-learn", "--json").stdout)["route"] == "no_memory"
    done = elm("review", "approve", memory, "--note", "81 is right")
    assert (done.exit_code, done.stdout) == (0, f"{memory}: approved, so it is active\n")
    last = bank.events("default", memory)[-1]
    assert (last.kind, last.actor, last.note) == (EventKind.ACTIVATED, "command line", "81 is right")
    assert deferred(elm)


def test_a_memory_is_rejected_and_taken_back(elm: Elm, bank: Bank) -> None:
    memory = waiting_memory(elm)
    assert elm("review", "reject", memory).stdout == f"{memory}: rejected, so it is retired\n"
    assert_one_sentence(elm("review", "approve", memory), 2, "was rejected by somebody already: nothing was done")
    listed = json.loads(elm("review", "list", "--review", "rejected", "--json").stdout)
    assert [one["id"] for one in listed["memories"]] == [memory]
    assert listed["waiting"] == {"memories": 0, "answers": 0}
    assert elm("review", "undo", memory).stdout == f"{memory}: waits for a review again\n"
    assert bank.memory("default", memory).state is MemoryState.CANDIDATE
    assert waiting_memory(elm) == memory


def test_answers_wait_and_are_decided(elm: Elm, bank: Bank) -> None:
    memory = waiting_memory(elm)
    elm("review", "approve", memory)
    uses = [deferred(elm), deferred(elm)]
    listed = elm("review", "list", "--kind", "answers").stdout
    assert all(use in listed for use in uses)
    assert "memories 0, answers 2" in listed
    assert json.loads(elm("review", "list", "--kind", "memories", "--json").stdout)["answers"] == []
    assert len(json.loads(elm("review", "list", "--limit", "1", "--json").stdout)["answers"]) == 1
    shown = elm("review", "show", uses[0]).stdout
    for words in ("plain answer    43", "its answer      42", "returned        43", "review          waiting"):
        assert words in shown
    assert elm("review", "approve", uses[0]).stdout == f"{uses[0]}: approved, so the answer is 42\n"
    assert bank.use("default", uses[0]).feedback_effect == "helped"
    both = json.loads(elm("review", "undo", uses[0], "--json").stdout)
    assert (both["id"], both["review"], both["use"]["feedback"]) == (uses[0], "waiting", None)
    told = json.loads(elm("review", "reject", *uses, "--note", "43 it is", "--json").stdout)
    assert [one["review"] for one in told] == ["rejected", "rejected"]
    assert {bank.use("default", use).review for use in uses} == {Review.REJECTED}


def test_what_does_not_wait_is_refused_in_one_sentence(elm: Elm, bank: Bank) -> None:
    memory = waiting_memory(elm)
    elm("memories", "restore", memory)
    assert_one_sentence(elm("review", "reject", memory), 2, "does not wait for a review: `elm-agent review list`")
    assert_one_sentence(elm("review", "undo", memory), 2, "there is nothing to take back")
    assert_one_sentence(elm("review", "show", "mem_x"), 3, "no memory 'mem_x'")
    assert_one_sentence(elm("review", "approve", "use_x"), 3, "no use 'use_x'")
    assert_one_sentence(elm("--namespace", "other", "review", "list"), 3, "'other' is not in this bank")
    assert error_of(elm("review", "approve", memory, "--note", "a" * 2001, "--json"))["message"].startswith(
        "a note has at most 2000 characters"
    )
    assert bank.memory("default", memory).state is MemoryState.ACTIVE
