"""Learning as a graph of its own, to be run by a LangGraph server's clock: works off the queue once."""

from typing import TypedDict

from langgraph.graph import END, START, StateGraph

from elm_agent.integrations.langgraph import shared_runtime


class Done(TypedDict, total=False):
    jobs: int


def learn(_state: Done) -> Done:  # sync on purpose: a server runs it in a thread
    return {"jobs": shared_runtime().worker().run(once=True)}


graph = StateGraph(Done).add_node("learn", learn).add_edge(START, "learn").add_edge("learn", END).compile()
