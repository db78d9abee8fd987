"""``memories`` and ``jobs`` on a real bank, with doubles for model and trainer. None of it opens a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Elm, assert_one_sentence, error_of, python

from elm_agent.bench.filling import use_of
from elm_agent.cli.output import to_json
from elm_agent.memory.learn import learn
from elm_agent.records import JobState, MemoryRecord, Recipe, UseOutcome
from elm_agent.settings import Settings
from elm_agent.storage.bank import Bank
from elm_agent.testing.doubles import FakeTrainer, fake_fingerprint

QUESTION = "What is [bold]6[/bold] times 7?"  # brackets are no markup


@dataclass
class World:
    """A bank in ./.elm with one memory and one queued job in namespace ``default``, and an empty one, ``other``."""

    bank: Bank
    memory: MemoryRecord
    job_id: str


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    from elm_agent.runtime import open_bank

    bank = open_bank(Settings(home=tmp_path / ".elm"))
    model, recipe = fake_fingerprint(), Recipe()
    for namespace in ("default", "other"):
        bank.bind(namespace, model)
    bank.jobs.enqueue("default", QUESTION, task="math", model_id=model.id, recipe=recipe)
    lease = bank.jobs.claim("test", lease_seconds=60)
    assert lease is not None
    memory = learn(
        lease,
        trainer=FakeTrainer(steps=3),
        bank=bank,
        model_fingerprint=model,
        observe=lambda *_: None,
        cancelled=lambda: False,
    )
    use = use_of("default", memory.id, question="What is 6 times 8?", similarity=0.875, outcome=UseOutcome.FIXED)
    bank.record_use(use)
    job, _ = bank.jobs.enqueue("default", "another", task="math", model_id=model.id, recipe=recipe)
    yield World(bank, bank.memory("default", memory.id), job.id)
    bank.close()


def document(elm: Elm, *words: object) -> Any:
    result = elm(*words, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return json.loads(result.stdout)


def text(elm: Elm, *words: object) -> str:
    result = elm(*words)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def test_list_and_show_memories(elm: Elm, world: World) -> None:
    shown = text(elm, "memories", "list")
    assert world.memory.id in shown
    assert QUESTION in shown
    expected = json.loads(to_json(world.memory))
    assert document(elm, "memories", "list") == [expected]
    assert document(elm, "memories", "show", world.memory.id) == expected
    assert f"question    {QUESTION}" in text(elm, "memories", "show", world.memory.id)
    assert document(elm, "memories", "list", "--state", "retired") == []
    assert document(elm, "memories", "list", "--namespace", "other") == []
    assert "no memories in namespace 'other'" in text(elm, "memories", "list", "--namespace", "other")


def test_why_tells_the_whole_story(elm: Elm, world: World) -> None:
    shown = text(elm, "memories", "why", world.memory.id)
    for words in (
        f"made from: {QUESTION}",
        "majority answer: 42",
        "vote share ▇▇▇",
        "grad norm",
        "used 1 times; fixed 1, broken 0",
        "0.875",
        "created",
        "model fake: weights sha256:",
        f"learning_rate={Recipe().learning_rate}",
        world.memory.tensor_digest,
    ):
        assert words in shown
    told = document(elm, "memories", "why", world.memory.id)
    assert set(told) == {"memory", "worth", "episode", "uses", "events"}
    assert len(told["episode"]["curve"]) == 3
    assert [use["outcome"] for use in told["uses"]] == ["fixed"]
    assert "no idea" in text(elm, "memories", "why", world.memory.id, "--rollouts")


def test_pin_evict_restore(elm: Elm, world: World) -> None:
    memory_id = world.memory.id
    assert document(elm, "memories", "pin", memory_id)["pinned"] is True
    assert_one_sentence(elm("memories", "evict", memory_id), 2, "is pinned: unpin it")
    assert document(elm, "memories", "unpin", memory_id)["pinned"] is False
    assert f"evicted {memory_id}: retired" in text(elm, "memories", "evict", memory_id, "--reason", "it does harm")
    assert world.bank.memory("default", memory_id).reason == "it does harm"
    assert document(elm, "memories", "restore", memory_id)["state"] == "active"
    actors = [event.actor for event in world.bank.events("default", memory_id)][-4:]
    assert actors == ["command line"] * 4


@pytest.mark.parametrize("command", ["show", "why", "pin", "unpin", "evict", "restore"])
def test_an_unknown_memory(elm: Elm, world: World, command: str) -> None:
    assert world
    assert_one_sentence(elm("memories", command, "mem_nope"), 3, "mem_nope")
    assert error_of(elm("memories", command, "mem_nope", "--json"))["type"] == "NotFound"


def test_namespaces_do_not_see_each_other(elm: Elm, world: World) -> None:
    words = ("--namespace", "other")
    assert_one_sentence(elm("memories", "show", world.memory.id, *words), 3, world.memory.id)
    assert_one_sentence(elm("jobs", "cancel", world.job_id, *words), 3, "in namespace 'other'")
    assert world.bank.jobs.get("default", world.job_id).state is JobState.QUEUED
    assert document(elm, "jobs", "list", *words) == []


@pytest.mark.parametrize("words", [["memories", "list"], ["jobs", "list"], ["memories", "show", "mem_1"]])
def test_an_unknown_namespace(elm: Elm, world: World, words: list[str]) -> None:
    assert world
    message = "namespace 'nope' is not in this bank; it has: default, other"
    assert_one_sentence(elm(*words, "--namespace", "nope"), 3, message)


def test_looking_at_no_bank_makes_none(elm: Elm, tmp_path: Path) -> None:
    assert_one_sentence(
        elm("memories", "list", "--home", "typo"), 3, "there is no bank in typo: `elm-agent ask` makes"
    )
    assert not (tmp_path / "typo").exists()


def test_jobs(elm: Elm, world: World) -> None:
    assert {job["state"] for job in document(elm, "jobs", "list")} == {"queued", "done"}
    assert [job["id"] for job in document(elm, "jobs", "list", "--state", "queued")] == [world.job_id]
    assert len(document(elm, "jobs", "list", "--limit", 1)) == 1
    assert world.job_id in text(elm, "jobs", "list")
    assert "attempts          0" in text(elm, "jobs", "show", world.job_id)
    assert document(elm, "jobs", "cancel", world.job_id)["state"] == "cancelled"
    assert f"{world.job_id}: queued" in text(elm, "jobs", "retry", world.job_id)
    assert_one_sentence(elm("jobs", "retry", world.job_id), 2, "only a failed or cancelled job can be retried")


@pytest.mark.parametrize("command", ["show", "cancel", "retry"])
def test_an_unknown_job(elm: Elm, world: World, command: str) -> None:
    assert world
    assert_one_sentence(elm("jobs", command, "job_nope"), 3, "no job 'job_nope'")


def test_a_running_job_is_asked_to_stop(elm: Elm, world: World) -> None:
    lease = world.bank.jobs.claim("test", lease_seconds=60)
    assert lease is not None
    assert f"{world.job_id}: asked to stop" in text(elm, "jobs", "cancel", world.job_id)
    assert world.bank.jobs.heartbeat(lease, lease_seconds=60) is True


def test_reading_opens_no_model(world: World, tmp_path: Path) -> None:
    """In a process of its own: a model of that name does not even exist."""
    script = """
import sys
from elm_agent.cli import main
try:
    main()
finally:
    assert "transformers" not in sys.modules
"""
    done = python("-c", script, "memories", "why", world.memory.id, "--model", "nowhere/nothing", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
