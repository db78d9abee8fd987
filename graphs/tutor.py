"""A tutor for a LangGraph server: a hint first, then the way, then the answer; it remembers each learner apart."""

from typing import TypedDict

from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, StateGraph

from elm_agent.integrations.langgraph import build_graph, shared_runtime


class Lesson(TypedDict, total=False):
    learner: str
    question: str
    hint_level: int
    reply: str


solver = build_graph(shared_runtime)


def reply(lesson: Lesson, out: dict) -> dict:
    hints = ["Try it yourself first.", f"It can begin like this: {out['text'][: len(out['text']) // 2]} ..."]
    level = lesson.get("hint_level", 0)
    return {"reply": hints[level] if level < len(hints) else out["text"], "hint_level": level + 1}


def asked(lesson: Lesson) -> dict:
    return {"input": {"question": lesson["question"]}, "context": {"namespace": lesson["learner"]}}


async def ateach(lesson: Lesson) -> dict:
    return reply(lesson, await solver.ainvoke(**asked(lesson)))


teach = RunnableLambda(lambda lesson: reply(lesson, solver.invoke(**asked(lesson))), ateach, name="teach")
graph = StateGraph(Lesson).add_node("teach", teach).add_edge(START, "teach").add_edge("teach", END).compile()
