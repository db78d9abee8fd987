"""Threads of the graph on LangGraph's own checkpointers, with strict msgpack: interrupted, and resumed by another
process's objects; many at once. Sync and async."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import aiosqlite
import psycopg
import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime as Run
from langgraph.types import Command, interrupt
from postgres import fresh_database
from psycopg.rows import dict_row
from sqlalchemy import make_url

from elm_agent import Runtime, open_runtime
from elm_agent.integrations.langgraph import RunContext, build_graph
from elm_agent.testing.doubles import FakeModel, FakeTrainer, FixedVerifier

FIRST, SECOND = {"question": "What is 7 times 8?"}, {"question": "What is 7 times 9?"}
ADA: Any = {"namespace": "ada"}
STRICT = JsonPlusSerializer(pickle_fallback=False, allowed_msgpack_modules=None)

Open = Callable[..., Runtime]


class Place:
    """Where checkpoints are kept; every ``saver`` is a new one, as in another process (but in memory)."""

    def __init__(self, kind: str, where: str) -> None:
        self.kind, self.where = kind, where
        self._memory = InMemorySaver(serde=STRICT)

    @asynccontextmanager
    async def saver(self, *, asynchronous: bool) -> AsyncIterator[Any]:
        if self.kind == "memory":
            yield self._memory
        elif self.kind == "sqlite" and asynchronous:
            async with aiosqlite.connect(self.where) as connection:
                yield AsyncSqliteSaver(connection, serde=STRICT)
        elif self.kind == "sqlite":
            with closing(sqlite3.connect(self.where, check_same_thread=False)) as connection:
                yield SqliteSaver(connection, serde=STRICT)
        elif asynchronous:
            async with await psycopg.AsyncConnection.connect(self.where, **_AS_ASKED) as connection:
                saver = AsyncPostgresSaver(connection, serde=STRICT)
                await saver.setup()
                yield saver
        else:
            with psycopg.connect(self.where, **_AS_ASKED) as connection:
                saver = PostgresSaver(connection, serde=STRICT)
                saver.setup()
                yield saver


_AS_ASKED: Any = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}  # by those savers


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param != "postgres":
        yield Place(request.param, str(tmp_path / "checkpoints.sqlite"))
        return
    with fresh_database(request.getfixturevalue("postgres_server")) as url:
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        yield Place("postgres", plain)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    runtimes: list[Runtime] = []

    def open_() -> Runtime:
        model = FakeModel(reply=lambda _prompt, memory_id: "\\boxed{2}" if memory_id else "\\boxed{1}")
        parts: Any = {"model": model, "trainer": FakeTrainer(), "verifier": FixedVerifier()}
        settings: Any = {"home": tmp_path / "home", "index": "exact", "worker": {"mode": "external"}}
        runtimes.append(open_runtime(**parts, **settings))
        return runtimes[-1]

    yield open_
    for runtime in runtimes:
        runtime.close()


class Talk(TypedDict, total=False):
    question: str
    answer: str
    route: str
    approved: str


def confirm(state: Talk) -> Talk:
    return {"approved": interrupt({"answer": state["answer"]})}


def talk(runtime: Runtime, saver: Any) -> Any:
    """A parent whose person looks at each answer."""
    graph = StateGraph(Talk, context_schema=RunContext)
    graph.add_node("memory", build_graph(runtime)).add_node("confirm", confirm)
    graph.add_edge(START, "memory").add_edge("memory", "confirm").add_edge("confirm", END)
    return graph.compile(checkpointer=saver)


def thread(name: str) -> Any:
    return {"configurable": {"thread_id": name}}


async def run(graph: Any, *asked: Any, asynchronous: bool, **how: Any) -> Any:
    return await graph.ainvoke(*asked, **how) if asynchronous else graph.invoke(*asked, **how)


def teach(runtime: Runtime) -> None:
    build_graph(runtime).invoke(FIRST, context=ADA)
    assert runtime.worker().run(once=True) == 1


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_a_thread_goes_on_where_it_was_interrupted(opened: Open, place: Place, asynchronous: bool) -> None:
    """By its parent, and between our own nodes; what another process opens goes on, and generates nothing anew."""
    how: Any = {"asynchronous": asynchronous}
    first = opened()
    teach(first)
    async with place.saver(asynchronous=asynchronous) as saver:
        asked = await run(talk(first, saver), SECOND, thread("parent"), context=ADA, **how)
        assert asked["__interrupt__"][0].value == {"answer": "2"}
        own = build_graph(first, checkpointer=saver)
        await run(own, SECOND, thread("own"), context=ADA, interrupt_before=["consolidate"], **how)
    assert len(first.bank.uses("ada")) == 1
    second = opened()
    async with place.saver(asynchronous=asynchronous) as saver:
        out = await run(talk(second, saver), Command(resume="yes"), thread("parent"), **how)
        assert (out["approved"], out["answer"], out["route"]) == ("yes", "2", "memory")
        out = await run(build_graph(second, checkpointer=saver), None, thread("own"), **how)
        assert (out["answer"], out["route"]) == ("2", "memory")
    assert isinstance(second.model, FakeModel)
    assert second.model.batches == []
    assert {use.id for use in second.bank.uses("ada")} > {out["use_id"]}
    assert {job.namespace for job in second.bank.jobs.list(state=None)} == {"ada"}


@dataclass
class Shift:
    """The parent's context, of which we know nothing."""

    clerk: str


class Found(TypedDict, total=False):
    question: str
    out: dict[str, Any]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_a_subgraph_has_a_context_of_its_own(opened: Open, asynchronous: bool) -> None:
    """Called by a node with namespace, threshold, tier and whether to learn; its state is kept with its parent's."""
    elm = opened()
    teach(elm)
    memory = build_graph(elm)
    own: dict[str, Any] = ADA | {"min_similarity": -1.0, "tier": "thorough", "learn": False, "explain": True}

    def look_up(_: Found, runtime: Run[Shift]) -> dict[str, Any]:
        assert runtime.context.clerk == "Ben"
        return {"out": memory.invoke(SECOND, context=own)}

    async def alook_up(_: Found, runtime: Run[Shift]) -> dict[str, Any]:
        assert runtime.context.clerk == "Ben"
        return {"out": await memory.ainvoke(SECOND, context=own)}

    graph = StateGraph(Found, context_schema=Shift)
    graph.add_node("look_up", alook_up if asynchronous else look_up)
    graph.add_edge(START, "look_up").add_edge("look_up", END)
    parent = graph.compile(checkpointer=InMemorySaver(serde=STRICT))
    how: Any = {"context": Shift("Ben"), "asynchronous": asynchronous}

    async def asked(name: str) -> dict[str, Any]:
        return dict((await run(parent, {"question": "?"}, thread(name), **how))["out"])

    out = await asked("a")
    assert (out["memory_namespace"], out["job_id"]) == ("ada", None)
    assert out["explanation"]["budget"]["tier"] == "thorough"
    own |= {"min_similarity": 0.999}
    assert "the threshold is 0.999" in (await asked("b"))["reason"]
    own |= {"namespace": "ben", "learn": True}
    out = await asked("c")
    assert (out["route"], out["memory_id"]) == ("no_memory", None)
    assert elm.bank.jobs.get("ben", out["job_id"]).question == SECOND["question"]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_many_threads_at_once_keep_apart(opened: Open, place: Place, asynchronous: bool) -> None:
    runtime = opened()
    teach(runtime)
    names = [f"user{number}" for number in range(6)]
    async with place.saver(asynchronous=asynchronous) as saver:
        graph = talk(runtime, saver)

        def begin(name: str) -> Any:
            return graph.invoke({"question": f"What is 7 times 9, {name}?"}, thread(name), context=ADA)

        if asynchronous:
            asked = [{"question": f"What is 7 times 9, {name}?"} for name in names]
            await asyncio.gather(
                *(graph.ainvoke(one, thread(name), context=ADA) for one, name in zip(asked, names, strict=True))
            )
            outs = await asyncio.gather(*(graph.ainvoke(Command(resume=name), thread(name)) for name in names))
        else:
            with ThreadPoolExecutor(len(names)) as pool:
                list(pool.map(begin, names))
                outs = list(pool.map(lambda name: graph.invoke(Command(resume=name), thread(name)), names))
    assert [out["approved"] for out in outs] == names
    assert [name in out["question"] for name, out in zip(names, outs, strict=True)] == [True] * len(names)
    assert len(runtime.bank.uses("ada")) == len(names)
