"""Finding a memory on a real bank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elm_agent.errors import NotFound
from elm_agent.memory.recall import Recall, nearest_memories, recall
from elm_agent.memory.worker import Worker
from elm_agent.records import Hit, JobRecord, KeyKind
from elm_agent.storage.bank import Bank
from elm_agent.testing.doubles import FakeModel

QUESTION = "What is 7 times 8?"


@pytest.fixture
def learnt(bank: Bank, enqueue: Callable[..., JobRecord], make_worker: Callable[..., Worker]) -> Bank:
    for question in (QUESTION, "Name a colour"):
        enqueue(question)
    make_worker().run(once=True)
    return bank


def find(bank: Bank, question: str, **more: Any) -> Recall:
    return recall(question, bank=bank, model=FakeModel(), **({"namespace": "ns"} | more))


@pytest.mark.parametrize("kind", list(KeyKind))
def test_the_nearest_with_its_prompt(learnt: Bank, kind: KeyKind) -> None:
    found = find(learnt, QUESTION, kind=kind)
    assert found.memory_id is not None
    assert learnt.memory("ns", found.memory_id).question == QUESTION
    assert found.similarity == pytest.approx(1.0)
    assert found.prompt is not None
    assert (found.prompt.virtual_tokens, found.reason, found.failed) == (20, None, False)


def test_an_empty_bank(bank: Bank) -> None:
    assert find(bank, QUESTION) == Recall(reason="the bank has no memory")


def test_abstaining_says_how_near_it_was(learnt: Bank) -> None:
    found = find(learnt, "Something else entirely", min_similarity=0.99)
    assert (found.memory_id, found.prompt, found.failed) == (None, None, False)
    assert found.similarity is not None
    assert f"{found.similarity:.3f}" in str(found.reason)


def test_the_own_memory_is_excluded(learnt: Bank) -> None:
    found = find(learnt, QUESTION, exclude_same_question=True)
    assert found.memory_id is not None
    assert learnt.memory("ns", found.memory_id).question == "Name a colour"


def test_unreadable_tensors(learnt: Bank, tmp_path: Path) -> None:
    for file in (tmp_path / "tensors").rglob("*.safetensors"):
        file.unlink()
    nearest = find(learnt, QUESTION, top_k=2)
    assert nearest.failed
    assert nearest.memory_id is not None
    assert nearest.prompt is None
    assert str(nearest.reason).count("is unusable") == 2


def test_an_unknown_namespace_raises(bank: Bank) -> None:
    with pytest.raises(NotFound):
        find(bank, QUESTION, namespace="nowhere")


def test_the_nearest_are_shown_with_their_records_but_for_those_purged_meanwhile(
    learnt: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(**more: Any) -> list[tuple[float, str]]:
        found = nearest_memories(QUESTION, bank=learnt, model=FakeModel(), namespace="ns", **({"limit": 5} | more))
        assert all(hit.memory_id == memory.id for hit, memory in found)
        return [(round(hit.similarity, 4), memory.question) for hit, memory in found]

    whole = look()
    assert [question for _, question in whole] == [QUESTION, "Name a colour"]
    assert whole[0][0] == 1.0
    assert look(limit=1) == look(min_similarity=0.99) == whole[:1]
    nearest = learnt.nearest

    def purging(*arguments: Any, **more: Any) -> list[Hit]:
        hits = nearest(*arguments, **more)
        learnt.evict("ns", {hits[0].memory_id: None}, actor="test")
        learnt.purge("ns", [hits[0].memory_id], actor="test", reason=None)
        return hits

    monkeypatch.setattr(learnt, "nearest", purging)
    assert look() == whole[1:]
