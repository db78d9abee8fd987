"""The solver for a LangGraph server: a question in, an answer with its route out, and one learning job queued."""

from elm_agent.integrations.langgraph import build_graph, shared_runtime

graph = build_graph(shared_runtime)
