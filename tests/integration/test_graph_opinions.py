"""Further memories that are heard where the nearest one's answer and the plain one differ, through the graph."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from graph_calls import Open
from langgraph.checkpoint.memory import InMemorySaver

from elm_agent import Runtime
from elm_agent.errors import NotFound, TensorMissing
from elm_agent.integrations.langgraph import build_graph

LEARNT = ["What is 7 times 8?", "What is 7 times 7?", "What is 7 times 6?", "What is 7 times 5?"]
ASKED: Any = {"question": "What is 7 times 9?"}
EXPLAIN: Any = {"learn": False, "explain": True}


@pytest.fixture
def usual() -> dict[str, Any]:
    return {"task": "number", "verification": {"opinions": 2}}


def taught(runtime: Runtime, answers: list[str]) -> list[str]:
    """Teach it all of ``LEARNT``; the nearest memory of ``ASKED`` gives the first of ``answers``, and so on."""
    graph = build_graph(runtime)
    for question in LEARNT:
        graph.invoke({"question": question})
    told = graph.invoke(ASKED, context={**EXPLAIN, "note": False})["explanation"]["retrieval"]["candidates"]
    near = [one["memory_id"] for one in told]
    of = dict(zip(near, answers, strict=False))
    model: Any = runtime.model
    model.reply = lambda _prompt, memory_id: of.get(memory_id, "0") if memory_id else "1"
    model.batches.clear()
    return near


def rows(runtime: Runtime) -> int:
    model: Any = runtime.model
    return sum(len(batch) for batch in model.batches)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_an_opinion_against_both_answers_serves_and_is_noted(opened: Open, mode: str) -> None:
    runtime = opened()
    near = taught(runtime, ["2", "3", "3", "2"])
    graph = build_graph(runtime)
    out = (
        graph.invoke(ASKED, context=EXPLAIN) if mode == "sync" else asyncio.run(graph.ainvoke(ASKED, context=EXPLAIN))
    )
    assert (out["answer"], out["route"], out["memory_id"]) == ("3", "memory", near[1])
    assert out["candidates"]["memory"]["memory_id"] == near[1]
    assert "2 of 4 answers say '3'" in out["reason"]
    assert rows(runtime) == 4
    told = out["explanation"]
    assert json.loads(json.dumps(told)) == told
    assert told["budget"]["opinions"] == {"votes": 2, "voters": 4, "memories": near[1:3]}
    assert [one["memory_id"] for one in told["retrieval"]["candidates"] if one["used"]] == [near[1]]
    assert out["similarity"] == told["retrieval"]["candidates"][1]["similarity"]
    (use,) = [one for one in runtime.bank.uses("default") if one.id == out["use_id"]]
    assert (use.memory_id, use.memory_answer, use.zero_shot_answer, use.similarity) == (
        near[1],
        "3",
        "1",
        out["similarity"],
    )
    assert [(one["memory_id"], one["candidate"]["text"]) for one in out["heard"]] == [(near[0], "2"), (near[2], "3")]
    assert [(one["memory_id"], one["answer"], one["route"]) for one in told["heard"]] == [
        (near[0], "2", "outvoted"),
        (near[2], "3", "memory"),
    ]


def noted(runtime: Runtime) -> dict[str, tuple[str, str | None, str | None]]:
    """Of the last question by memory: how it stood, what it said, and what was returned."""
    uses = [use for use in runtime.bank.uses("default") if use.question == ASKED["question"]]
    return {use.memory_id: (use.route.value, use.memory_answer, use.answer) for use in uses}


@pytest.mark.parametrize(
    ("answers", "routes"),
    [
        (["2", "3", "3", "9"], ["outvoted", "memory", "memory"]),
        (["2", "1", "4", "9"], ["zero_shot", "agreed", "zero_shot"]),
        (["2", "2", "4", "9"], ["memory", "memory", "outvoted"]),
    ],
)
def test_each_memory_that_was_heard_is_noted_with_what_its_own_answer_did(
    opened: Open, answers: list[str], routes: list[str]
) -> None:
    runtime = opened()
    near = taught(runtime, answers)
    before = len(runtime.bank.uses("default"))
    out = build_graph(runtime).invoke(ASKED, context={"learn": False})
    assert len(runtime.bank.uses("default")) == before + 3
    found = noted(runtime)
    assert [found[memory] for memory in near[:3]] == [
        (route, said, out["answer"]) for route, said in zip(routes, answers, strict=False)
    ]


def test_the_vote_of_samples_has_the_last_word_on_those_who_were_heard(opened: Open) -> None:
    runtime = opened(budget={"samples": 5})
    near = taught(runtime, ["2", "3", "3", "9"])
    out = build_graph(runtime).invoke(ASKED, context={"learn": False, "tier": "thorough"})
    assert (out["answer"], out["route"], out["memory_id"]) == ("1", "zero_shot", near[1]), "six plain ones say so"
    assert {route for route, _, _ in noted(runtime).values()} == {"zero_shot"}


def test_a_thread_forgets_whom_it_heard(opened: Open) -> None:
    runtime = opened()
    taught(runtime, ["2", "3", "3", "9"])
    graph = build_graph(runtime, checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "one"}}
    assert graph.invoke(ASKED, config, context=EXPLAIN)["heard"]
    uses = len(runtime.bank.uses("default"))
    out = graph.invoke(ASKED, config, context={**EXPLAIN, "min_similarity": 1.0})
    assert (out["route"], out["heard"], out["explanation"]["heard"]) == ("no_memory", [], [])
    assert len(runtime.bank.uses("default")) == uses


def test_one_who_was_heard_and_is_gone_costs_its_own_use_alone(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = opened()
    near = taught(runtime, ["2", "3", "3", "9"])
    record = runtime.bank.record_use

    def gone(use: Any, **more: Any) -> None:
        if use.memory_id == near[0]:
            raise NotFound("it is purged")
        record(use, **more)

    monkeypatch.setattr(runtime.bank, "record_use", gone)
    out = build_graph(runtime).invoke(ASKED, context={"learn": False})
    assert runtime.bank.use("default", out["use_id"]).memory_id == near[1]
    assert f"that {near[0]} was heard is not noted: NotFound: it is purged" in out["reason"]
    assert set(noted(runtime)) == {near[1], near[2]}


def test_opinions_for_the_plain_answer_keep_it(opened: Open) -> None:
    runtime = opened()  # whose verifier likes every memory better
    near = taught(runtime, ["2", "1", "4", "2"])
    out = build_graph(runtime).invoke(ASKED, context=EXPLAIN)
    assert (out["answer"], out["route"], out["memory_id"]) == ("1", "zero_shot", near[0])


def test_nobody_is_asked_where_both_agree(opened: Open) -> None:
    runtime = opened()
    taught(runtime, ["1", "3", "3", "3"])
    out = build_graph(runtime).invoke(ASKED, context=EXPLAIN)
    assert (out["answer"], out["route"], rows(runtime)) == ("1", "agreed", 2)
    assert "opinions" not in out["explanation"]["budget"]


def test_none_are_heard_by_default(opened: Open) -> None:
    runtime = opened(verification={})
    taught(runtime, ["2", "3", "3", "3"])
    assert build_graph(runtime).invoke(ASKED, context=EXPLAIN)["answer"] == "2"
    assert rows(runtime) == 2


def test_a_memory_that_cannot_be_read_has_no_say(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = opened()
    near = taught(runtime, ["2", "3", "3", "2"])
    prompt = runtime.bank.prompt

    def lost(namespace: str, memory_id: str) -> Any:
        if memory_id == near[1]:
            raise TensorMissing(f"the tensor of {memory_id} is gone")
        return prompt(namespace, memory_id)

    monkeypatch.setattr(runtime.bank, "prompt", lost)
    out = build_graph(runtime).invoke(ASKED, context=EXPLAIN)
    assert out["explanation"]["budget"]["opinions"] == {"votes": 1, "voters": 3, "memories": [near[2]]}


def test_further_memories_answer_in_words_where_that_is_wanted(opened: Open) -> None:
    runtime = opened(verification={"opinions": 2, "opinions_by": "words"})
    near = taught(runtime, ["2", "9", "9", "9"])
    model: Any = runtime.model
    by_prompt = model.reply
    turns = {runtime.bank.memory("default", memory).question: memory for memory in near}
    said = dict(zip(near, ["2", "3", "3", "2"], strict=True))

    def reply(prompt: str, memory_id: str | None) -> str:
        before = [memory for question, memory in turns.items() if question in prompt]
        return said[before[0]] if before else str(by_prompt(prompt, memory_id))

    model.reply = reply
    out = build_graph(runtime).invoke(ASKED, context=EXPLAIN)
    assert (out["answer"], out["route"], out["memory_id"]) == ("3", "memory", near[1])
    assert "2 of 4 answers say '3'" in out["reason"]
    asked = [row for batch in model.batches for row in batch]
    assert len(asked) == 4
    assert [row.prefix.memory_id for row in asked if row.prefix] == [near[0]]
    assert [(one["memory_id"], one["in_words"]) for one in out["heard"]] == [(near[0], False), (near[2], True)]
    assert [one["in_words"] for one in out["explanation"]["heard"]] == [False, True]
    assert noted(runtime)[near[2]] == ("memory", "3", "3")


def test_a_further_memory_without_words_answers_by_its_prompt(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = opened(verification={"opinions": 2, "opinions_by": "words"})
    near = taught(runtime, ["2", "3", "3", "2"])
    monkeypatch.setattr("elm_agent.integrations.langgraph.choosing.example_of", lambda *_: None)
    out = build_graph(runtime).invoke(ASKED, context=EXPLAIN)
    assert (out["answer"], out["memory_id"], out["heard"][1]["in_words"]) == ("3", near[1], False)


@pytest.mark.parametrize(
    ("lead", "answer", "route", "why"),
    [
        (1, "3", "memory", "2 of 4 answers say '3'"),
        (2, "1", "zero_shot", "1 of 4 answers say '1', and no other leads"),
    ],
)
def test_with_a_lead_the_plain_answer_stands_until_enough_say_something_else(
    opened: Open, lead: int, answer: str, route: str, why: str
) -> None:
    runtime = opened(verification={"opinions": 2, "lead": lead})
    near = taught(runtime, ["2", "3", "3", "2"])
    out = build_graph(runtime).invoke(ASKED, context=EXPLAIN)
    assert (out["answer"], out["route"]) == (answer, route)
    assert why in out["reason"]
    assert out["memory_id"] == (near[1] if route == "memory" else near[0])
    assert out["explanation"]["budget"]["opinions"]["votes"] == int(why[0])


def test_with_a_lead_a_memory_alone_does_not_change_an_answer(opened: Open) -> None:
    runtime = opened(verification={"opinions": 1, "lead": 1})
    graph = build_graph(runtime)
    graph.invoke({"question": LEARNT[0]})
    out = graph.invoke(ASKED, context=EXPLAIN)
    assert (out["answer"], out["route"], out["reason"]) == ("1", "zero_shot", "1 of 2 answers say '1'")


@pytest.mark.parametrize(("lead", "answer", "route"), [(0, "2", "memory"), (1, "1", "zero_shot")])
def test_where_hearing_them_fails_the_answer_stands(opened: Open, lead: int, answer: str, route: str) -> None:
    runtime = opened(verification={"opinions": 2, "lead": lead})
    near = taught(runtime, ["2", "3", "3", "2"])
    model: Any = runtime.model
    reply = model.reply

    def broken(prompt: str, memory_id: str | None) -> str:
        if memory_id == near[2]:
            raise RuntimeError("the row broke")
        return str(reply(prompt, memory_id))

    model.reply = broken
    out = build_graph(runtime).invoke(ASKED, context=EXPLAIN)
    assert (out["answer"], out["route"], out["memory_id"]) == (answer, route, near[0])
    assert "no further memory was heard: RuntimeError: the row broke" in out["reason"]
