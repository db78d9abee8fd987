"""A node of your own chat graph: the parent talks in ``messages``, keeps threads, and sends sums to the memory agent.

Run:  python examples/08_messages.py
"""

from __future__ import annotations

from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

from elm_agent import Runtime, Settings, open_runtime
from elm_agent.integrations.langgraph import build_messages_graph


def greet(_state: MessagesState) -> dict:
    return {"messages": [AIMessage("Hello! Ask me what is 6 times 7.")]}


def which(state: MessagesState) -> str:
    return "memory" if any(letter.isdigit() for letter in state["messages"][-1].text) else "greet"


def build_assistant(runtime: Runtime):
    graph = StateGraph(MessagesState)
    graph.add_node("greet", greet).add_node("memory", build_messages_graph(runtime))
    graph.add_conditional_edges(START, which, ["greet", "memory"])
    graph.add_edge("greet", END).add_edge("memory", END)
    return graph.compile(checkpointer=InMemorySaver())


def main() -> None:
    with open_runtime(Settings()) as runtime:
        assistant = build_assistant(runtime)
        thread = {"configurable": {"thread_id": "ada"}}
        for said in ("Hi there", "What is 6 times 7?"):
            assistant.invoke({"messages": said}, thread)
            runtime.runner.wait_idle()
        for message in assistant.get_state(thread).values["messages"]:
            print(f"{message.type:>6}: {message.text}   {message.response_metadata.get('route', '')}")


if __name__ == "__main__":
    main()
