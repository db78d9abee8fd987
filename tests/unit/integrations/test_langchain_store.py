"""The bank as a LangGraph store: read like any other, and never written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.tools import InjectedStore
from langchain_core.tools import tool
from langgraph.store.base import BaseStore, GetOp, PutOp

from elm_agent import MemoryState
from elm_agent.errors import InputError
from elm_agent.integrations.langchain import ChatELM, MemoryBankStore
from elm_agent.records import EventKind

Open = Callable[..., Any]
Learn = Callable[..., str]


@pytest.fixture
def filled(opened: Open, learn: Learn) -> tuple[Any, MemoryBankStore, dict[str, str]]:
    runtime = opened()
    ids = {
        question: learn(runtime, question, namespace)
        for namespace, question in [
            ("default", "What is 7 times 8?"),
            ("default", "Name the capital of France"),
            ("ada", "What is 7 times 9?"),
        ]
    }
    return runtime, MemoryBankStore(runtime), ids


async def test_a_memory_is_an_item(filled: Any) -> None:
    runtime, store, ids = filled
    memory_id = ids["What is 7 times 9?"]
    item = store.get(("ada",), memory_id)
    memory = runtime.bank.memory("ada", memory_id)
    assert (item.key, item.namespace, item.created_at) == (memory_id, ("ada",), memory.created_at)
    assert (item.value["question"], item.value["state"]) == ("What is 7 times 9?", "active")
    assert await store.aget(("ada",), memory_id) == item
    for namespace, key in [
        (("default",), memory_id),
        (("ada",), "mem_0"),
        (("nobody",), memory_id),
        (("ada", "x"), memory_id),
    ]:
        assert store.get(namespace, key) is None


async def test_search_without_a_query_goes_through_all(filled: Any) -> None:
    runtime, store, ids = filled
    assert {item.key for item in store.search(())} == set(ids.values())
    assert [item.key for item in store.search(("ada",))] == [ids["What is 7 times 9?"]]
    newest = [item.key for item in store.search(("default",))]
    assert newest == [ids["Name the capital of France"], ids["What is 7 times 8?"]]
    assert [item.key for item in store.search(("default",), limit=1, offset=1)] == newest[1:]
    assert await store.asearch(("nobody",)) == []
    runtime.bank.transition("ada", ids["What is 7 times 9?"], MemoryState.RETIRED, actor="test", reason="a test")
    assert [item.value["state"] for item in store.search(("ada",))] == ["retired"]


def test_search_with_a_query_finds_the_nearest_active_ones(filled: Any) -> None:
    runtime, store, ids = filled
    found = store.search((), query="What is 7 times 8?")
    assert {item.key for item in found} == set(ids.values())
    scores = [item.score for item in found]
    assert scores == sorted(scores, reverse=True)
    assert [item.key for item in store.search(("ada",), query="anything", limit=1)] == [ids["What is 7 times 9?"]]
    runtime.bank.transition("ada", ids["What is 7 times 9?"], MemoryState.RETIRED, actor="test", reason="a test")
    assert store.search(("ada",), query="anything") == []


def test_filters_compare(filled: Any) -> None:
    _, store, ids = filled
    france = ids["Name the capital of France"]
    for wanted in (
        {"question": "Name the capital of France"},
        {"question": {"$eq": "Name the capital of France"}, "uses": {"$lte": 0}, "vote_share": {"$gt": 0.5}},
        {"question": {"$lt": "O"}, "memory_id": {"$ne": "x"}},
    ):
        assert [item.key for item in store.search((), filter=wanted)] == [france]
        assert [item.key for item in store.search(("default",), filter=wanted, query="France")] == [france]
    assert store.search((), filter={"uses": {"$gte": 1}}) == store.search((), filter={"colour": "red"}) == []
    assert store.search((), filter={"question": {"$gt": 3}}) == []
    with pytest.raises(InputError, match=r"no '\$in'"):
        store.search((), filter={"uses": {"$in": [1]}})


def test_namespaces_are_listed(filled: Any) -> None:
    _, store, _ = filled
    assert store.list_namespaces() == [("ada",), ("default",)]
    assert store.list_namespaces(prefix=("ada",)) == store.list_namespaces(suffix=("a*",)) == [("ada",)]
    assert store.list_namespaces(prefix=("ada", "x")) == []
    assert store.list_namespaces(limit=1, offset=1) == [("default",)]


async def test_nothing_is_written(filled: Any) -> None:
    runtime, store, ids = filled
    before = len(runtime.bank.events("ada"))
    with pytest.raises(InputError, match="written by learning alone"):
        store.put(("ada",), "fact", {"text": "the sky is blue"})
    with pytest.raises(InputError, match="cannot be deleted through the store: evict it"):
        await store.adelete(("ada",), ids["What is 7 times 9?"])
    with pytest.raises(InputError):
        store.batch([GetOp(("ada",), "mem_0"), PutOp(("ada",), "fact", {})])
    assert len(runtime.bank.events("ada")) == before


async def test_what_may_not_be_seen_is_not_there(filled: Any) -> None:
    runtime, _, ids = filled
    store = MemoryBankStore(runtime, namespaces=["default"], evicts=True)
    hidden = ids["What is 7 times 9?"]
    assert store.list_namespaces() == [("default",)]
    assert hidden not in {item.key for item in store.search(())}
    assert hidden not in {item.key for item in store.search((), query="What is 7 times 9?")}
    assert store.search(("ada",)) == store.search(("ada",), query="anything") == []
    assert store.get(("ada",), hidden) is await store.aget(("ada",), hidden) is None
    store.delete(("ada",), hidden)
    assert runtime.bank.memory("ada", hidden).state is MemoryState.ACTIVE


async def test_deleting_evicts_where_that_is_allowed(filled: Any) -> None:
    runtime, _, ids = filled
    store = MemoryBankStore(runtime, evicts=True)
    memory_id = ids["What is 7 times 9?"]
    await store.adelete(("ada",), memory_id)
    store.delete(("ada",), memory_id)  # again, and what was never there: nothing happens
    store.delete(("ada",), "mem_0")
    store.delete(("nobody",), memory_id)
    assert store.get(("ada",), memory_id).value["state"] == "retired"
    assert store.search(("ada",), query="anything") == []
    evicted = [event.actor for event in runtime.bank.events("ada", memory_id) if event.kind is EventKind.EVICTED]
    assert evicted == ["LangGraph store"]
    france = ids["Name the capital of France"]
    runtime.bank.pin("default", france, True, actor="test")
    with pytest.raises(InputError, match="is pinned"):
        store.delete(("default",), france)
    with pytest.raises(InputError, match="written by learning alone"):
        store.batch([PutOp(("default",), ids["What is 7 times 8?"], None), PutOp(("default",), "fact", {})])
    assert store.get(("default",), ids["What is 7 times 8?"]).value["state"] == "active"


def test_tools_of_an_agent_see_it(filled: Any) -> None:
    runtime, store, ids = filled

    @tool
    def count(namespace: str, store: Annotated[BaseStore, InjectedStore()]) -> str:
        """Count memories."""
        return f"{len(store.search(()))} memories, none in {namespace}"

    out = create_agent(ChatELM(runtime=runtime), [count], store=store).invoke({"messages": "How many?"})
    assert out["messages"][2].content == f"{len(ids)} memories, none in cats"
