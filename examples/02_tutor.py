"""A tutoring agent: a namespace for each learner, a hint first, the steps next, the answer last.

The tutor is a LangGraph graph of its own. The memory graph is one of its nodes; which learner it serves is said
by the namespace in the run's context, so that nothing learned with one learner reaches another.

Run:  python examples/02_tutor.py
"""

from __future__ import annotations

from typing import TypedDict

from langgraph.graph import END, START, StateGraph

from elm_agent import Settings, open_runtime
from elm_agent.integrations.langgraph import build_graph


class Lesson(TypedDict, total=False):
    learner: str
    question: str
    hint_level: int  # 0: a nudge, 1: the steps, 2: the answer
    reply: str


def build_tutor(runtime):
    solver = build_graph(runtime)

    def tutor(lesson: Lesson) -> Lesson:
        out = solver.invoke({"question": lesson["question"]}, context={"namespace": lesson["learner"]})
        answer = str(out["answer"])
        replies = [
            f"Try it yourself first. The answer has {len(answer)} character(s).",
            f"Look at how one can begin: {out['text'][: len(out['text']) // 2]} ...",
            f"The answer is {answer}.",
        ]
        return {"reply": replies[min(lesson.get("hint_level", 0), 2)]}

    graph = StateGraph(Lesson)
    graph.add_node("tutor", tutor)
    graph.add_edge(START, "tutor")
    graph.add_edge("tutor", END)
    return graph.compile()


def main() -> None:
    with open_runtime(Settings()) as runtime:
        tutor = build_tutor(runtime)
        for level in range(3):
            lesson: Lesson = {"learner": "ada", "question": "What is 6 times 7?", "hint_level": level}
            print(f"hint {level}: {tutor.invoke(lesson)['reply']}", flush=True)
        tutor.invoke({"learner": "ben", "question": "What is 3 plus 4?", "hint_level": 2})
        runtime.runner.wait_idle()
        for learner in ("ada", "ben"):
            print(f"learned with {learner}: {[m.question for m in runtime.bank.memories(learner)]}")


if __name__ == "__main__":
    main()
