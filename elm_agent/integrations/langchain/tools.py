"""The bank and the agent as tools for an agent of any model: ask, recall, why, feedback.

Every tool answers with JSON. Knows a runtime; knows nothing of models that call.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Literal

from langchain_core.tools import BaseTool, StructuredTool
from pydantic import Field

from elm_agent.errors import ElmError, NotFound
from elm_agent.integrations.langchain.shown import history, memory_values, namespace_of_run, nearest
from elm_agent.integrations.langgraph.graph import build_graph
from elm_agent.integrations.langgraph.lazy import shared_runtime
from elm_agent.memory.answering import check_question
from elm_agent.runtime import Runtime

Opened = Runtime | Callable[[], Runtime]


def ask_tool(runtime: Opened = shared_runtime) -> BaseTool:
    """A tool ``ask_elm``: the whole graph, so the calling agent has a colleague who answers with memory and learns.

    The run's context is passed on: its ``namespace``, ``learn`` and the others of ``RunContext`` count.
    """
    graph = build_graph(runtime)
    told = ("answer", "text", "route", "memory_id", "use_id")

    def ask(question: Annotated[str, Field(description="One self-contained question.")]) -> str:
        out = graph.invoke({"question": question})
        return _json({name: out[name] for name in told})

    async def aask(question: str) -> str:
        out = await graph.ainvoke({"question": question})
        return _json({name: out[name] for name in told})

    return _tool(
        "ask_elm",
        "Ask a small local model that learns from every question it is asked. Returns its answer, the text it came "
        "from, and how it was chosen.",
        ask,
        aask,
    )


def memory_tools(runtime: Opened = shared_runtime, *, namespace: str | None = None) -> list[BaseTool]:
    """``recall_memories``, ``why_memory`` and ``give_feedback`` on one namespace.

    None: that of the run's context, as for ``ask_tool``, or the runtime's own. Namespaces that are shared with it are
    read too.
    """

    def get() -> tuple[Runtime, str]:
        opened = runtime() if callable(runtime) else runtime
        return opened, namespace_of_run(opened) if namespace is None else namespace

    def recall_memories(
        question: Annotated[str, Field(description="What the experiences should be near to.")],
        k: Annotated[int, Field(description="At most so many.", ge=1, le=20)] = 4,
    ) -> str:
        opened, own = get()
        found = nearest(opened, check_question(question), namespace=own, k=k)
        return _json([{**memory_values(memory), "similarity": round(hit.similarity, 4)} for hit, memory in found])

    def why_memory(memory_id: Annotated[str, Field(description="An id, such as recall_memories returns.")]) -> str:
        opened, own = get()
        home = find_home(opened, memory_id, own)
        bank = opened.bank
        events = bank.events(home, memory_id, limit=20)
        return _json(history(bank.memory(home, memory_id), bank.episode(home, memory_id), events))

    def give_feedback(
        use_id: Annotated[str, Field(description="The use_id of the answer, as ask_elm returns it.")],
        verdict: Annotated[Literal["right", "wrong"], Field(description="What the user said of it.")],
        answer: Annotated[str | None, Field(description="The right answer, where the user told it.")] = None,
    ) -> str:
        opened, own = get()
        report = opened.feedback(use_id, verdict, answer=answer, namespace=own)
        return _json(asdict(report))

    return [
        _tool(
            "recall_memories",
            "Find what was learnt from questions like this one: the questions, how sure the votes were, and whether "
            "the memories helped since.",
            recall_memories,
        ),
        _tool(
            "why_memory",
            "Tell where one memory comes from and what it did: its question, votes, uses and history.",
            why_memory,
        ),
        _tool(
            "give_feedback",
            "Note that an answer was right or wrong, so that the memory behind it is judged by it. Only for what a "
            "user has said; the last word counts.",
            give_feedback,
        ),
    ]


def find_home(runtime: Runtime, memory_id: str, own: str) -> str:
    """The namespace of a memory: one's own, or one that is shared with it. Raises ``NotFound``."""
    for name in (own, *runtime.shared(own)):
        try:
            runtime.bank.memory(name, memory_id)
        except NotFound:
            continue
        return name
    raise NotFound(f"memory {memory_id!r:.80} is not in namespace {own!r}, nor in one that is shared with it")


def _tool(
    name: str, description: str, run: Callable[..., str], arun: Callable[..., Any] | None = None
) -> StructuredTool:
    """A tool whose failures that a caller can mend are its answer, one sentence, and no exception."""

    def told(**arguments: Any) -> str:
        try:
            return run(**arguments)
        except ElmError as error:
            return _refusal(error)

    async def atold(**arguments: Any) -> str:
        try:
            return await (asyncio.to_thread(run, **arguments) if arun is None else arun(**arguments))
        except ElmError as error:
            return _refusal(error)

    schema = StructuredTool.from_function(run, name=name, description=description).args_schema
    return StructuredTool.from_function(
        told, coroutine=atold, name=name, description=description, args_schema=schema, infer_schema=False
    )


def _refusal(error: ElmError) -> str:
    return _json({"error": str(error)})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
