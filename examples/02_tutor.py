"""A tutoring agent: it explains step by step, adapts how much it gives away, and remembers each learner apart.

The tutor is a LangGraph graph of its own with the memory graph as one of its nodes. A checkpointer keeps the lesson
between two attempts. Which learner it serves is said by the namespace in the run's context, so that nothing learned
with one learner reaches another.

Run:  python examples/02_tutor.py
"""

from __future__ import annotations

import re
from typing import TypedDict

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph

from elm_agent import Runtime, Settings, open_runtime
from elm_agent.integrations.langgraph import build_graph


class Lesson(TypedDict, total=False):
    question: str
    attempt: str | None  # what the learner says; None: nothing yet
    text: str  # how the memory graph solves it ...
    answer: str | None  # ... and what comes out
    solved: str  # the question these belong to
    hint_level: int  # how many steps are shown; rises with wrong attempts, falls with right ones
    reply: str


def explain(lesson: Lesson, level: int) -> str:
    """The first ``level`` steps with the answer hidden, or everything when there are no more steps."""
    steps = [step.strip() for step in re.split(r"\n+|(?<=[.!?])\s+", lesson["text"]) if step.strip()]
    answer = lesson["answer"] or "not known to me either"
    if level > len(steps):
        return f"{lesson['text']}\nSo the answer is {answer}."
    return "\n".join(["Try it.", *steps[:level]]).replace(answer, "...")


def build_tutor(runtime: Runtime):
    def begin(lesson: Lesson) -> str:
        return "teach" if lesson.get("solved") == lesson["question"] else "solve"

    def teach(lesson: Lesson) -> Lesson:
        level, attempt, answer = lesson.get("hint_level", 0), lesson.get("attempt"), lesson["answer"]
        if attempt and answer and runtime.task.equivalent(attempt, answer):
            level, reply = max(level - 1, 0), f"Right, it is {answer}."
        else:
            level += bool(attempt)
            reply = explain(lesson, level)
        return {"hint_level": level, "reply": reply, "solved": lesson["question"]}

    graph = StateGraph(Lesson).add_node("solve", build_graph(runtime)).add_node("teach", teach)
    graph.add_conditional_edges(START, begin, ["solve", "teach"]).add_edge("solve", "teach").add_edge("teach", END)
    return graph.compile(checkpointer=InMemorySaver())


def main() -> None:
    with open_runtime(Settings()) as runtime:
        tutor = build_tutor(runtime)

        def say(learner: str, question: str, attempt: str | None = None) -> None:
            out = tutor.invoke(
                {"question": question, "attempt": attempt},
                {"configurable": {"thread_id": learner}},
                context={"namespace": learner},
            )
            print(
                f"{learner}: {attempt or question}\ntutor, hint level {out['hint_level']}: {out['reply']}\n",
                flush=True,
            )

        say("ada", "What is 6 times 7?")
        for attempt in ("40", "41", "42"):
            say("ada", "What is 6 times 7?", attempt)
        say("ben", "What is 3 plus 4?")

        print("learning ...", flush=True)
        runtime.runner.wait_idle()
        for learner in ("ada", "ben"):
            print(f"learned with {learner}: {[memory.question for memory in runtime.bank.memories(learner)]}")


if __name__ == "__main__":
    main()
