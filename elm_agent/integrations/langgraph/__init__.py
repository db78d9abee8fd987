"""The memory agent as a LangGraph graph, on a question or on messages."""

from elm_agent.integrations.langgraph.forms import make_nodes
from elm_agent.integrations.langgraph.graph import build_graph, draw_graph
from elm_agent.integrations.langgraph.lazy import shared_runtime
from elm_agent.integrations.langgraph.messages import build_messages_graph
from elm_agent.integrations.langgraph.review_graph import (
    MemoryAsked,
    MemoryDecision,
    MemoryReviewed,
    Reviews,
    build_review_graph,
)
from elm_agent.integrations.langgraph.reviewing import OverrideAsked, OverrideDecision
from elm_agent.integrations.langgraph.state import Answer, Question, RunContext, State

__all__ = [
    "Answer",
    "MemoryAsked",
    "MemoryDecision",
    "MemoryReviewed",
    "OverrideAsked",
    "OverrideDecision",
    "Question",
    "Reviews",
    "RunContext",
    "State",
    "build_graph",
    "build_messages_graph",
    "build_review_graph",
    "draw_graph",
    "make_nodes",
    "shared_runtime",
]
