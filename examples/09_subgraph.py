"""A subgraph with a context of its own, in a thread that waits for a person.

The parent knows a clerk, the memory agent a customer, each with memories of their own.
Run:  python examples/09_subgraph.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime as Run
from langgraph.types import Command, interrupt

from elm_agent import Runtime, Settings, open_runtime
from elm_agent.integrations.langgraph import build_graph


@dataclass
class Shift:
    clerk: str


class Order(TypedDict, total=False):
    customer: str
    question: str
    answer: str | None
    route: str
    said: str


def build_desk(elm: Runtime):
    memory = build_graph(elm)  # without a checkpointer: it keeps its state where the desk does

    def look_up(order: Order) -> Order:
        own = {"namespace": order["customer"], "min_similarity": 0.2, "tier": "normal", "learn": True}
        out = memory.invoke({"question": order["question"]}, context=own)
        return {"answer": out["answer"], "route": out["route"]}

    def say(order: Order, runtime: Run[Shift]) -> Order:
        return {"said": interrupt(f"{runtime.context.clerk}, shall I say {order['answer']}?")}

    graph = StateGraph(Order, context_schema=Shift)
    graph.add_node("look_up", look_up).add_node("say", say)
    graph.add_edge(START, "look_up").add_edge("look_up", "say").add_edge("say", END)
    return graph.compile(checkpointer=InMemorySaver())


def main() -> None:
    with open_runtime(Settings()) as runtime:
        desk, shift = build_desk(runtime), Shift(clerk="Ada")
        for number, question in enumerate(("What is 3 times 12?", "What is 4 times 12?")):
            thread = {"configurable": {"thread_id": f"order {number}"}}
            asked = desk.invoke({"customer": "shop", "question": question}, thread, context=shift)
            print(asked["__interrupt__"][0].value)
            out = desk.invoke(Command(resume=f"It is {asked['answer']}."), thread, context=shift)
            print(f"  {out['said']} ({out['route']})")
            runtime.runner.wait_idle()
        print(f"{len(runtime.bank.memories('shop'))} memories of this shop")


if __name__ == "__main__":
    main()
