"""One problem with one learner: a LangGraph graph whose first node is the memory graph.

Where the learner has to say something the graph stops (``interrupt``), so a terminal, a web page or a test can be
the learner, and a lesson can wait. Knows hints and feedback; knows no terminal and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from hints import ladder
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import interrupt

from elm_agent import Runtime
from elm_agent.errors import TaskError
from elm_agent.integrations.langchain import ElmMemoryRetriever
from elm_agent.integrations.langgraph import RunContext, build_graph

WANTS_HINT = ("", "?", "hint")
WANTS_ON = ("skip", "next")
NO_IDEA = ("", "?", "no")


class Lesson(TypedDict, total=False):
    question: str
    subject: str  # whose question it is: it goes along into the memory, so that a learner can be forgotten
    right: str | None  # the key of whoever wrote the problem; None: nobody knows
    taught: list[str]  # their hints
    back: dict[str, str] | None  # what to ask back, with its answer

    # what the memory graph says
    text: str
    answer: str | None
    route: str
    memory_id: str | None
    memory_namespace: str | None
    use_id: str | None

    # what happens between the two of them
    say: str
    reply: str
    hints: list[str]
    given: int
    attempts: list[str]
    end: str | None  # "solved", "shown" or "skipped"
    feedback: dict[str, Any] | None  # what was noted of the tutor's own answer


class Tutor:
    """The nodes of a lesson, bound to one learner's ``namespace``.

    ``known``: answers of earlier problems that are surely right, by question; only those are told as examples.
    """

    def __init__(self, runtime: Runtime, namespace: str, known: Mapping[str, str]) -> None:
        self._runtime = runtime
        self._namespace = namespace
        self._known = known

    def graph(self) -> CompiledStateGraph[Lesson, RunContext, Lesson, Lesson]:
        """Compiled, with a checkpointer: a lesson that was stopped goes on with ``Command(resume=...)``."""
        graph = StateGraph(Lesson, context_schema=RunContext)
        graph.add_node("solve", build_graph(self._runtime))
        for node in (self.begin, self.listen, self.judge, self.ask_back, self.note):
            graph.add_node(node.__name__, node)
        graph.add_edge(START, "solve").add_edge("solve", "begin")
        graph.add_conditional_edges("begin", after, ["listen", "ask_back"]).add_edge("listen", "judge")
        graph.add_conditional_edges("judge", after, ["listen", "ask_back", "note"])
        graph.add_edge("ask_back", "note").add_edge("note", END)
        return graph.compile(checkpointer=InMemorySaver(), name="lesson")

    # --- nodes ----------------------------------------------------------------------------------------------

    def begin(self, lesson: Lesson) -> Lesson:
        """Set the hints out. The tutor's own way is one of them only where it comes out right."""
        right, own = lesson["right"], lesson["answer"]
        begun = Lesson(hints=[], given=0, attempts=[], end=None, say=lesson["question"])
        if right is None and own is None:
            return begun | Lesson(end="shown", say="I cannot make anything of that.")
        way = lesson["text"] if right is None or self._same(own, right) else None
        if right is None:
            begun["say"] = "What do you think?"
        begun["hints"] = ladder(right or own, taught=lesson["taught"], near=self._near(lesson["question"]), way=way)
        return begun

    def listen(self, lesson: Lesson) -> Lesson:
        return {"reply": interrupt({"say": lesson["say"], "wants": "attempt"})}

    def judge(self, lesson: Lesson) -> Lesson:
        """Praise, or the next hint; the last hint is the answer."""
        reply, expected = lesson["reply"].strip(), lesson["right"] or lesson["answer"]
        if reply.lower() in WANTS_ON:
            return {"end": "skipped", "say": "Let us leave it."}
        attempts = lesson["attempts"]
        if reply.lower() not in WANTS_HINT:
            attempts = [*attempts, reply]
            if self._same(reply, expected):
                sure = "Right" if lesson["right"] else "That is what I get, too"
                return {"attempts": attempts, "end": "solved", "say": f"{sure}: {expected}."}
        given = lesson["given"] + 1
        end = "shown" if given == len(lesson["hints"]) else None
        return {"attempts": attempts, "given": given, "end": end, "say": lesson["hints"][given - 1]}

    def ask_back(self, lesson: Lesson) -> Lesson:
        """Whether it was understood; or, where nobody gave the tutor a key, what is right."""
        back = lesson["back"]
        if lesson["right"] is None:
            asks = f"My own answer is {lesson['answer'] or 'none'}. Do you know what is right?"
            told = interrupt({"say": f"{lesson['say']} {asks} (yes, the answer, or Enter)", "wants": "right"}).strip()
            if told.lower() in NO_IDEA:
                return {"say": "Then it stays open."}
            return {"right": lesson["answer"] if told.lower() == "yes" else told, "say": "Thank you, I note it."}
        if back is None:
            return {}
        reply = interrupt({"say": f"{lesson['say']} And: {back['question']}", "wants": "back"})
        return {"say": "Right." if self._same(reply, back["answer"]) else f"Not quite: {back['answer']}."}

    def note(self, lesson: Lesson) -> Lesson:
        """Feedback on the tutor's own answer, in the learner's namespace: the memory it used is judged by it."""
        right, use_id, own = lesson["right"], lesson["use_id"], lesson["answer"]
        if right is None or use_id is None:
            return {"feedback": None}
        verdict = "right" if self._same(own, right) else "wrong"
        report = self._runtime.feedback(use_id, verdict, answer=right, namespace=self._namespace)
        return {"feedback": {"verdict": verdict, "effect": report.effect and report.effect.value}}

    # --- parts ----------------------------------------------------------------------------------------------

    def _same(self, said: str | None, right: str) -> bool:
        """Whether what was said means ``right``. Learners say anything; what cannot be compared is not right."""
        if said is None:
            return False
        task = self._runtime.task
        try:
            return task.equivalent(task.extract(said) or said.strip(), right)
        except TaskError:
            return False

    def _near(self, question: str) -> tuple[str, str] | None:
        """The most similar problem that was learnt from, the learner's own or the course's, and its right answer."""
        found = ElmMemoryRetriever(runtime=self._runtime, namespace=self._namespace, k=4).invoke(question)
        near = (document.metadata["question"] for document in found)
        return next(((one, self._known[one]) for one in near if one != question and one in self._known), None)


def after(lesson: Lesson) -> str:
    if lesson["end"] is None:
        return "listen"
    return "note" if lesson["end"] == "skipped" else "ask_back"
