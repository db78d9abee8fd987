"""``memories expire`` and what is told of purged memories: on a real bank, without a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Elm, assert_one_sentence, error_of

from elm_agent.errors import InputError
from elm_agent.records import EventKind, KeyKind, MemoryKeys, MemoryState, Recipe, utcnow
from elm_agent.runtime import open_bank
from elm_agent.settings import Settings
from elm_agent.storage.adopt import Adopted
from elm_agent.storage.bank import Bank
from elm_agent.storage.ledger.chain import verify
from elm_agent.testing.doubles import WIDTH, fake_fingerprint, unit_vector


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELM_INDEX", "exact")


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    """Three active memories in ./.elm."""
    import torch

    from elm_agent.softprompt import SoftPrompt

    bank = open_bank(Settings(home=tmp_path / ".elm", index="exact"))
    bank.bind("default", fake_fingerprint())
    items = [
        Adopted(
            question=f"question {n}",
            task="math",
            prompt=SoftPrompt(torch.full((2, WIDTH), float(n + 1))),
            keys=MemoryKeys(input=unit_vector(f"question {n}", WIDTH), kv=None),
            model=fake_fingerprint(),
            recipe=Recipe(virtual_tokens=2),
            origin="test",
            state=MemoryState.ACTIVE,
        )
        for n in range(3)
    ]
    bank.adopt("default", items, actor="test")
    yield bank
    bank.close()


def document(elm: Elm, *words: object) -> Any:
    result = elm(*words, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return json.loads(result.stdout)


def found(bank: Bank) -> set[str]:
    return {hit.memory_id for hit in bank.nearest("default", KeyKind.INPUT, unit_vector("question 0", WIDTH), 9)}


def test_a_memory_expires_now_later_or_never(elm: Elm, bank: Bank) -> None:
    memory_id = bank.memories("default")[0].id
    expire = ("memories", "expire", memory_id)
    until = datetime.fromisoformat(document(elm, *expire)["valid_until"])
    assert timedelta(0) <= utcnow() - until < timedelta(minutes=5)
    assert memory_id not in found(bank)
    assert document(elm, *expire, "--never")["valid_until"] is None
    assert memory_id in found(bank)
    later = document(elm, *expire, "--at", "2999-01-01T12:00:00+02:00")["valid_until"]
    assert datetime.fromisoformat(later) == datetime(2999, 1, 1, 10, tzinfo=UTC)
    assert memory_id in found(bank)
    assert "valid until 2999-01-01 10:00:00 UTC" in elm("memories", "show", memory_id).stdout
    assert f"valid for ever: {memory_id}: active" in elm(*expire, "--never").stdout
    assert "valid until -" in elm("memories", "show", memory_id).stdout
    local = document(elm, *expire, "--at", "2020-05-05")["valid_until"]
    assert datetime.fromisoformat(local) == datetime(2020, 5, 5).astimezone()
    assert memory_id not in found(bank)


def test_each_change_of_validity_is_one_event(elm: Elm, bank: Bank) -> None:
    memory_id = bank.memories("default")[0].id
    for when in (["--at", "2999-01-01T00:00:00+00:00"], ["--at", "2999-01-01T01:00:00+01:00"], ["--never"]):
        assert elm("memories", "expire", memory_id, *when).exit_code == 0
    changes = [event for event in bank.events("default", memory_id) if event.kind is EventKind.VALIDITY]
    assert [event.detail for event in changes] == [
        {"valid_until": "2999-01-01T00:00:00+00:00"},
        {"valid_until": None},
    ]
    assert {event.actor for event in changes} == {"command line"}
    assert verify(bank.database, "default").broken is None
    assert len(document(elm, "audit", "log", "--kind", "validity")) == 2


def test_what_has_expired_is_retired_by_maintenance(elm: Elm, bank: Bank) -> None:
    memory_id = bank.memories("default")[0].id
    document(elm, "memories", "expire", memory_id, "--at", "2020-01-01")
    done = document(elm, "maintain", "--yes")
    assert (done["evicted"], done["cached_files"]) == (1, 0)
    assert bank.memory("default", memory_id).state is MemoryState.RETIRED


def test_mistakes_at_expiry(elm: Elm, bank: Bank) -> None:
    memory_id = bank.memories("default")[0].id
    expire = ("memories", "expire")
    assert_one_sentence(elm(*expire, memory_id, "--at", "2020-01-01", "--never"), 2, "--at and --never contradict")
    assert_one_sentence(elm(*expire, memory_id, "--at", "tomorrow"), 2, "'tomorrow'")
    assert_one_sentence(elm(*expire, memory_id, "--at", "0001-01-01T00:00:00+05:00"), 2, "name one after year 1")
    assert_one_sentence(elm(*expire, "mem_nope"), 3, "mem_nope")
    with pytest.raises(InputError, match="without one"):
        bank.set_validity("default", memory_id, datetime(2030, 1, 1), actor="test")
    assert bank.memory("default", memory_id).valid_until is None


def test_purged_memories_are_listed_with_what_is_left_of_them(elm: Elm, bank: Bank) -> None:
    assert "no purged memories" in elm("memories", "list", "--state", "purged").stdout
    assert document(elm, "memories", "list", "--state", "purged") == []
    first, second, _ = (memory.id for memory in bank.memories("default"))
    for memory_id in (first, second):
        bank.purge("default", [memory_id], actor="ann", reason=None)
    stones = document(elm, "memories", "list", "--state", "purged")
    assert [(stone["memory_id"], stone["actor"]) for stone in stones] == [(second, "ann"), (first, "ann")]
    assert all(utcnow() - datetime.fromisoformat(stone["purged_at"]) < timedelta(minutes=5) for stone in stones)
    newer = ("memories", "list", "--state", "purged", "--limit", 1)
    assert document(elm, *newer) == stones[:1]
    assert document(elm, *newer, "--offset", 1) == stones[1:]
    shown = elm("memories", "list", "--state", "purged").stdout
    assert f"{first}  {stones[1]['purged_at'][:10]}" in shown
    assert len(document(elm, "memories", "list")) == 1


def test_what_a_purged_memory_cannot_be_asked(elm: Elm, bank: Bank) -> None:
    memory_id = bank.memories("default")[0].id
    bank.purge("default", [memory_id], actor="ann", reason=None)
    told = f"memory {memory_id} was purged on {utcnow():%Y-%m-%d} by ann"
    for command in ("show", "why", "expire", "restore", "pin"):
        assert_one_sentence(elm("memories", command, memory_id), 3, told)
        assert error_of(elm("memories", command, memory_id, "--json"))["type"] == "NotFound"
    purged = ("memories", "list", "--state", "purged")
    assert_one_sentence(elm(*purged, "--subject", "ann"), 2, "leave --where and --subject out")
    assert_one_sentence(elm(*purged, "--where", "uses > 1"), 2, "leave --where and --subject out")
