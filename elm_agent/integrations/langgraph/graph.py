"""The graph: retrieve, answer twice at once, choose, ask a person where that is wanted, queue the learning.

Wires nodes; decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from langchain_core.runnables import Runnable, RunnableLambda
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from elm_agent.integrations.langgraph.forms import make_nodes
from elm_agent.integrations.langgraph.nodes import Update, onward, plan
from elm_agent.integrations.langgraph.state import Answer, Question, RunContext, State
from elm_agent.runtime import Runtime

NAMES = (
    "retrieve_memory",
    "generate_with_memory",
    "generate_zero_shot",
    "verify_and_route",
    "review_override",
    "consolidate",
)

Compiled = CompiledStateGraph[State, RunContext, Question, Answer]


def build_graph(
    runtime: Runtime | Callable[[], Runtime], *, checkpointer: BaseCheckpointSaver[str] | None = None
) -> Compiled:
    """A compiled graph on ``runtime``: ``{"question": ...}`` in, an ``Answer`` out, sync and async.

    Without a checkpointer it inherits that of the graph it is a node of. The runtime must stay open while the
    graph is used; a function such as ``shared_runtime`` opens it at the first question instead. Context of one
    run, all optional: see ``RunContext``.
    """
    return _wire(make_nodes(runtime)).compile(checkpointer=checkpointer, name="elm_agent")


def draw_graph() -> str:
    """The graph as a fenced Mermaid block, drawn from the compiled graph; needs no model."""
    compiled = _wire({name: RunnableLambda(_nothing, name=name) for name in NAMES}).compile()
    return f"```mermaid\n{compiled.get_graph().draw_mermaid(with_styles=False).strip()}\n```"


def _wire(nodes: Mapping[str, Runnable[State, Update]]) -> StateGraph[State, RunContext, Question, Answer]:
    graph = StateGraph(State, context_schema=RunContext, input_schema=Question, output_schema=Answer)
    for name in NAMES:
        graph.add_node(name, nodes[name], input_schema=State)
    graph.add_edge(START, "retrieve_memory")
    graph.add_conditional_edges("retrieve_memory", plan, ["generate_with_memory", "generate_zero_shot"])
    graph.add_edge("generate_with_memory", "verify_and_route")
    graph.add_edge("generate_zero_shot", "verify_and_route")
    graph.add_conditional_edges("verify_and_route", onward, ["review_override", "consolidate"])
    graph.add_edge("review_override", "consolidate")
    graph.add_edge("consolidate", END)
    return graph


def _nothing(state: State) -> Update:
    del state
    return {}
