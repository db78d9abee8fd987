"""The memory agent as a LangGraph graph. The only room that imports langgraph."""

from elm_agent.integrations.langgraph.forms import make_nodes
from elm_agent.integrations.langgraph.graph import build_graph, draw_graph
from elm_agent.integrations.langgraph.lazy import shared_runtime
from elm_agent.integrations.langgraph.state import Answer, Question, RunContext, State

__all__ = ["Answer", "Question", "RunContext", "State", "build_graph", "draw_graph", "make_nodes", "shared_runtime"]
