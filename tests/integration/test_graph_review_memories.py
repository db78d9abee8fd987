"""The graph that asks about memories before they serve: typed answers, any process, and decisions made elsewhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command

from elm_agent import MemoryState, Runtime, open_runtime
from elm_agent.errors import InputError, SettingsError
from elm_agent.integrations.langgraph import build_graph, build_review_graph
from elm_agent.memory.reviewing import decide
from elm_agent.records import EventKind, MemoryRecord, Review
from elm_agent.testing.doubles import FakeModel, FakeTrainer, FixedVerifier

THREAD: Any = {"configurable": {"thread_id": "t"}}
QUESTIONS = ["What is 7 times 8?", "What is 7 times 9?", "What is 7 times 6?"]


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    parts: Any = {"model": FakeModel(), "trainer": FakeTrainer(), "verifier": FixedVerifier()}
    settings: Any = {"home": tmp_path, "worker": {"mode": "inline"}, "index": "exact", "task": "number"}
    with open_runtime(**parts, **settings, review={"memories": True}) as opened:
        yield opened


def taught(runtime: Runtime, questions: list[str], namespace: str = "default") -> list[MemoryRecord]:
    runtime.bind(namespace)
    model_id = runtime.model.fingerprint.id
    for question in questions:
        runtime.bank.jobs.enqueue(
            namespace, question, task=runtime.task.name, model_id=model_id, recipe=runtime.recipe
        )
    runtime.worker().run(once=True)
    return runtime.bank.reviews.memories(namespace)


def asked(out: dict[str, Any]) -> dict[str, Any]:
    (one,) = out["__interrupt__"]
    told: dict[str, Any] = json.loads(json.dumps(one.value))
    return told


def test_each_memory_is_asked_about_and_becomes_what_was_answered(runtime: Runtime) -> None:
    first, second, third = taught(runtime, QUESTIONS)
    graph = build_review_graph(runtime, checkpointer=InMemorySaver())
    out: Any = graph.invoke({}, THREAD)
    episode = runtime.bank.episode("default", first.id)
    shown = asked(out)
    assert shown.pop("votes")[episode.majority_answer] > 0
    assert shown == {
        "kind": "memory",
        "namespace": "default",
        "memory_id": first.id,
        "question": first.question,
        "answer": episode.majority_answer,
        "vote_shares": [step.vote_share for step in episode.curve],
        "choices": ["approve", "reject", "later"],
    }
    assert out["__interrupt__"][0].response_schema["properties"]["choice"]["enum"] == ["approve", "reject", "later"]
    assert runtime.bank.memory("default", first.id).state is MemoryState.CANDIDATE

    out = graph.invoke(Command(resume={"choice": "approve", "note": "I counted"}), THREAD)
    assert asked(out)["memory_id"] == second.id
    assert asked(graph.invoke(Command(resume="later"), THREAD))["memory_id"] == third.id
    done = graph.invoke(Command(resume="reject"), THREAD)

    states = [runtime.bank.memory("default", one.id).state for one in (first, second, third)]
    assert states == [MemoryState.ACTIVE, MemoryState.CANDIDATE, MemoryState.RETIRED]
    assert done["reviewed"] == [
        {"memory_id": first.id, "outcome": "approved", "note": "I counted"},
        {"memory_id": second.id, "outcome": "later", "note": None},
        {"memory_id": third.id, "outcome": "rejected", "note": None},
    ]
    (event,) = runtime.bank.events("default", kind=EventKind.ACTIVATED)
    assert (event.memory_id, event.actor) == (first.id, "graph review")

    again: Any = graph.invoke({}, THREAD)  # what was put off is asked about again, and nothing of the last run counts
    assert asked(again)["memory_id"] == second.id
    assert graph.invoke(Command(resume="approve"), THREAD)["reviewed"] == [
        {"memory_id": second.id, "outcome": "approved", "note": None}
    ]


def test_another_answer_is_refused_and_the_question_still_waits(runtime: Runtime) -> None:
    (memory,) = taught(runtime, QUESTIONS[:1])
    graph = build_review_graph(runtime, checkpointer=InMemorySaver())
    graph.invoke({}, THREAD)
    for reply in ("yes", {"choice": "approve", "note": 7}, {"note": "good"}):
        with pytest.raises(InputError, match="'approve' or 'reject' or 'later'"):
            graph.invoke(Command(resume=reply), THREAD)
    assert runtime.bank.memory("default", memory.id).state is MemoryState.CANDIDATE
    (done,) = graph.invoke(Command(resume="approve"), THREAD)["reviewed"]
    assert done["outcome"] == "approved"


def test_who_was_quicker_is_right(runtime: Runtime) -> None:
    first, second = taught(runtime, QUESTIONS[:2])
    graph = build_review_graph(runtime, checkpointer=InMemorySaver())
    graph.invoke({}, THREAD)
    decide(runtime.bank, "default", first.id, Review.REJECTED, actor="somebody")
    out: Any = graph.invoke(Command(resume="approve"), THREAD)
    assert asked(out)["memory_id"] == second.id
    done, _ = graph.invoke(Command(resume="approve"), THREAD)["reviewed"]
    assert "nothing was done" in done["outcome"]
    assert runtime.bank.memory("default", first.id).state is MemoryState.RETIRED


def test_a_run_that_cannot_stop_says_so_only_where_something_waits(runtime: Runtime) -> None:
    graph = build_review_graph(runtime)
    assert graph.invoke({}) == {"reviewed": []}
    taught(runtime, QUESTIONS[:1])
    with pytest.raises(InputError, match="wait for a review, and this run cannot stop to ask"):
        graph.invoke({})


def test_a_namespace_is_asked_about_alone(runtime: Runtime) -> None:
    taught(runtime, QUESTIONS[:1])
    (other,) = taught(runtime, QUESTIONS[1:2], "ada")
    graph = build_review_graph(runtime, checkpointer=InMemorySaver())
    out: Any = graph.invoke({}, THREAD, context={"namespace": "ada"})
    assert (asked(out)["memory_id"], asked(out)["namespace"]) == (other.id, "ada")
    assert len(graph.invoke(Command(resume="approve"), THREAD)["reviewed"]) == 1
    with pytest.raises(SettingsError, match="is not usable"):
        graph.invoke({}, THREAD, context={"namespace": "../ada"})


def test_on_an_event_loop_and_behind_the_agent_in_one_graph(runtime: Runtime) -> None:
    """The agent learns, then a person is asked: two nodes of a parent that keeps the checkpoints."""

    class Lesson(TypedDict, total=False):
        question: str
        answer: str | None
        job_id: str | None
        reviewed: list[dict[str, Any]]

    async def learned(_lesson: Lesson) -> Lesson:
        await asyncio.to_thread(runtime.worker().run, once=True)
        return {}

    graph = StateGraph(Lesson)
    for name, node in (("solve", build_graph(runtime)), ("learn", learned), ("review", build_review_graph(runtime))):
        graph.add_node(name, node)
    graph.add_edge(START, "solve").add_edge("solve", "learn").add_edge("learn", "review").add_edge("review", END)
    compiled = graph.compile(checkpointer=InMemorySaver())

    async def lesson() -> dict[str, Any]:
        out: Any = await compiled.ainvoke({"question": QUESTIONS[0]}, THREAD)
        assert asked(out)["question"] == QUESTIONS[0]
        done: dict[str, Any] = await compiled.ainvoke(Command(resume="approve"), THREAD)
        return done

    done = asyncio.run(lesson())
    assert [one["outcome"] for one in done["reviewed"]] == ["approved"]
    assert runtime.bank.memory("default", done["reviewed"][0]["memory_id"]).state is MemoryState.ACTIVE
