"""The graph for parents that talk in ``messages``: the last human message is the question, the answer is appended.

Wires and translates; decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph

from elm_agent.errors import InputError
from elm_agent.integrations.langgraph.graph import build_graph
from elm_agent.integrations.langgraph.state import RunContext
from elm_agent.runtime import Runtime

TOLD = ("answer", "route", "reason", "memory_id", "memory_namespace", "similarity", "use_id", "job_id")
"""What of an ``Answer`` stands in the ``response_metadata`` of its message."""

_Compiled = CompiledStateGraph[MessagesState, RunContext, MessagesState, MessagesState]


def build_messages_graph(
    runtime: Runtime | Callable[[], Runtime], *, checkpointer: BaseCheckpointSaver[str] | None = None
) -> _Compiled:
    """A compiled graph that takes and gives ``messages``, sync and async; otherwise as ``build_graph``.

    The last human message alone is asked: memories are of questions that stand by themselves. Raises ``InputError``
    where there is none.
    """
    inner = build_graph(runtime)

    def answer(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        return _said(inner.invoke(_asked(state["messages"]), config))

    async def aanswer(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        return _said(await inner.ainvoke(_asked(state["messages"]), config))

    graph = StateGraph(MessagesState, context_schema=RunContext)
    graph.add_node("answer", RunnableLambda(answer, afunc=aanswer, name="answer"))
    graph.add_edge(START, "answer").add_edge("answer", END)
    return graph.compile(checkpointer=checkpointer, name="elm_agent_messages")


def _asked(messages: Sequence[AnyMessage]) -> Any:
    for message in reversed(messages):
        if isinstance(message, HumanMessage):
            return {"question": message.text}
    raise InputError("there is no human message to answer: expected one in `messages`")


def _said(out: dict[str, Any]) -> dict[str, Any]:
    message = AIMessage(content=out["text"], response_metadata={name: out[name] for name in TOLD})
    return {"messages": [message]}
