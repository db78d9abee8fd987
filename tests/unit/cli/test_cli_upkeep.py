"""Upkeep from the command line: first what would happen and why, then, when it is agreed to, exactly that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Elm, assert_one_sentence, error_of

from elm_agent.records import EventKind, MemoryState
from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors

pytestmark = pytest.mark.usefixtures("fake")


@pytest.fixture
def bank(elm: Elm, tmp_path: Path) -> Iterator[Bank]:
    """Three memories: of Ann, of Bob (pinned), of nobody."""
    for question, more in (("1 + 1?", ["--subject", "ann"]), ("2 + 2?", ["--subject", "bob"]), ("3 + 3?", [])):
        assert elm("ask", question, "--wait", *more).exit_code == 0
    bank = Bank(Database.open(f"sqlite:///{tmp_path}/.elm/elm.sqlite"), LocalTensors(tmp_path / ".elm/tensors"))
    bank.pin("default", ids(bank)["2 + 2?"], True, actor="test")
    yield bank
    bank.close()


def ids(bank: Bank) -> dict[str, str]:
    return {memory.question: memory.id for memory in bank.memories("default")}


def states(bank: Bank) -> dict[str, str]:
    return {memory.question: memory.state.value for memory in bank.memories("default")}


def document(elm: Elm, *words: object) -> Any:
    result = elm(*words, "--json")
    assert result.exit_code == 0, result.stdout
    return json.loads(result.stdout)


def test_maintain_shows_first_and_then_does_the_same(elm: Elm, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELM_EVICTION__CAPACITY", "1")
    shown = elm("maintain", "--evict")
    assert shown.exit_code == 0
    assert "least useful of 3 active memories, 1 may stay" in shown.stdout
    assert "capacity (kept: pinned)" in shown.stdout
    assert "2 memories would be retired (1 more are pinned and kept)" in shown.stdout
    assert "repeat the command with --yes" in shown.stderr
    assert set(states(bank).values()) == {"active"}
    dry = document(elm, "maintain", "--evict", "--yes", "--dry-run")
    assert (dry["dry_run"], dry["evicted"]) == (True, 2)
    done = document(elm, "maintain", "--evict", "--yes")
    assert (done["dry_run"], done["evicted"], done["kept"]) == (False, 2, 1)
    assert done["planned"] == dry["planned"]
    assert states(bank) == {"1 + 1?": "retired", "2 + 2?": "active", "3 + 3?": "retired"}
    assert document(elm, "maintain", "--evict", "--yes")["evicted"] == 0


def test_maintain_purges_only_when_asked(elm: Elm, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELM_EVICTION__UNDO_DAYS", "0")
    known = ids(bank)
    assert elm("memories", "evict", known["1 + 1?"], known["3 + 3?"]).exit_code == 0
    assert document(elm, "maintain", "--yes")["purged"] == 0
    assert document(elm, "maintain", "--purge")["purged"] == 2  # a dry run: nobody agreed
    assert len(ids(bank)) == 3
    assert document(elm, "maintain", "--purge", "--yes")["purged"] == 2
    assert list(ids(bank)) == ["2 + 2?"]


@pytest.mark.usefixtures("fake", "bank")
def test_a_schedule_asks_nobody(elm: Elm) -> None:
    assert_one_sentence(elm("maintain", "--every", "60"), 2, "add --yes, or --dry-run")


@pytest.mark.usefixtures("fake", "bank")
def test_wrong_conditions_are_one_sentence(elm: Elm, monkeypatch: pytest.MonkeyPatch) -> None:
    error = error_of(elm("memories", "list", "--where", "uses > ", "--json"))
    assert (error["type"], error["exit_code"]) == ("InputError", 2)
    monkeypatch.setenv("ELM_EVICTION__WHERE", "colour == 'red'")
    assert_one_sentence(elm("maintain"), 2, "unknown symbol: 'colour'")


@pytest.mark.usefixtures("fake", "bank")
def test_lists_by_condition_and_subject(elm: Elm) -> None:
    def listed(*words: object) -> list[str]:
        return [memory["question"] for memory in document(elm, "memories", "list", *words)]

    assert listed("--subject", "ann") == ["1 + 1?"]
    assert listed("--where", "pinned or subject == ''") == ["3 + 3?", "2 + 2?"]
    assert listed("--where", "not pinned", "--limit", 1) == ["3 + 3?"]
    assert listed("--where", "not pinned", "--offset", 1) == ["1 + 1?"]
    assert listed("--where", "pinned", "--subject", "ann") == []
    assert listed("--where", "true == true", "--state", "retired") == []


def test_several_memories_at_once(elm: Elm, bank: Bank) -> None:
    known = ids(bank)
    both = (known["1 + 1?"], known["3 + 3?"])
    assert [one["state"] for one in document(elm, "memories", "evict", *both)] == ["retired", "retired"]
    assert document(elm, "memories", "restore", both[0])["state"] == "active"


def test_a_review_is_kept_in_the_history(elm: Elm, bank: Bank) -> None:
    memory_id = ids(bank)["1 + 1?"]
    document(elm, "memories", "review", memory_id, "--verdict", "keep", "--note", "looks right")
    document(elm, "memories", "review", memory_id, "--verdict", "quarantine")
    assert bank.memory("default", memory_id).state is MemoryState.QUARANTINED
    reviews = [event for event in bank.events("default", memory_id) if event.kind is EventKind.REVIEWED]
    assert [(event.detail["verdict"], event.note) for event in reviews] == [
        ("keep", "looks right"),
        ("quarantine", None),
    ]


def test_a_purge_is_shown_first(elm: Elm, bank: Bank) -> None:
    memory_id = ids(bank)["1 + 1?"]
    shown = elm("memories", "purge", memory_id)
    assert memory_id in shown.stdout
    assert "--yes" in shown.stderr
    assert document(elm, "memories", "purge", memory_id) == {"dry_run": True, "memory_ids": [memory_id]}
    assert document(elm, "memories", "purge", memory_id, "--yes")["memory_ids"] == [memory_id]
    assert_one_sentence(elm("memories", "show", memory_id), 3, "was purged")
    assert_one_sentence(elm("memories", "purge", ids(bank)["2 + 2?"], "--yes"), 2, "is pinned")


def test_forgetting_a_subject(elm: Elm, bank: Bank) -> None:
    shown = elm("forget", "--subject", "bob")
    assert "1 memories with their episodes, 1 jobs" in shown.stdout
    assert len(ids(bank)) == 3
    assert document(elm, "forget", "--subject", "bob")["dry_run"] is True
    done = document(elm, "forget", "--subject", "bob", "--yes")
    assert (done["dry_run"], len(done["forgotten"][0]["memory_ids"])) == (False, 1)
    assert set(ids(bank)) == {"1 + 1?", "3 + 3?"}
    assert document(elm, "forget", "--subject", "bob", "--yes") == {"dry_run": True, "forgotten": []}
    assert document(elm, "forget", "--subject", "ann", "--everywhere", "--yes")["forgotten"] != []


def test_a_file_of_questions_names_subjects(elm: Elm, bank: Bank, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "4 + 4?", "who": "eve"}\n{"question": "5 + 5?", "who": 5}\n')
    result = elm("run", file, "--subject-field", "who")
    assert result.exit_code == 2
    assert "field 'who' is a number: expected text" in result.stderr + result.stdout
    assert {memory.question: memory.subject for memory in bank.memories("default")}["4 + 4?"] == "eve"
