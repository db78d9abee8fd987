"""The nearest memory is heard in words, too, where its answer and the plain one differ: through the graph."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from graph_calls import FIRST, SECOND, Open
from langgraph.checkpoint.memory import InMemorySaver

from elm_agent import Runtime
from elm_agent.integrations.langgraph import build_graph

EXPLAIN: Any = {"learn": False, "explain": True}


@pytest.fixture
def usual() -> dict[str, Any]:
    return {"task": "number", "verification": {"example": True}}


def taught(runtime: Runtime, *, memory: str, plain: str, example: str) -> Any:
    """A graph that knows ``FIRST``, and what is said with the memory, without it, and after its example."""
    graph = build_graph(runtime)
    graph.invoke(FIRST, context={"explain": False})
    model: Any = runtime.model

    def reply(prompt: str, memory_id: str | None) -> str:
        return memory if memory_id else example if FIRST["question"] in prompt else plain

    model.reply = reply
    model.batches.clear()
    return graph


def asked(runtime: Runtime) -> list[str]:
    model: Any = runtime.model
    return [bytes(row.prompt_ids).decode() for batch in model.batches for row in batch]


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(("example", "answer", "route"), [("1", "1", "zero_shot"), ("2", "2", "memory")])
def test_the_example_has_a_vote(opened: Open, example: str, answer: str, route: str, mode: str) -> None:
    runtime = opened()
    graph = taught(runtime, memory="2", plain="1", example=example)
    out = (
        graph.invoke(SECOND, context=EXPLAIN)
        if mode == "sync"
        else asyncio.run(graph.ainvoke(SECOND, context=EXPLAIN))
    )
    assert out["example"]["answer"] == example
    assert out["explanation"]["example"]["answer"] == example
    assert (out["answer"], out["route"]) == (answer, route)
    assert f"2 of 3 answers say '{answer}'" in out["reason"]
    told = out["explanation"]
    assert json.loads(json.dumps(told)) == told
    assert told["budget"]["opinions"]["voters"] == 3
    assert told["heard"] == []
    assert "heard" not in out
    use = runtime.bank.use("default", out["use_id"])
    assert (use.memory_id, use.route) == (out["memory_id"], out["route"])
    assert len(runtime.bank.uses("default")) == 1, "words are no second use"
    [shown] = [text for text in asked(runtime) if FIRST["question"] in text]
    assert shown.index(FIRST["question"]) < shown.index(SECOND["question"])


def test_words_that_win_speak_for_the_memory_and_its_prompt_is_not_forgotten(opened: Open) -> None:
    runtime = opened(verifier=lambda _question, item: float(item.answer == "3"))
    graph = taught(runtime, memory="2", plain="1", example="3")
    out = graph.invoke(SECOND, context=EXPLAIN)
    assert (out["answer"], out["route"]) == ("3", "memory")
    assert out["candidates"]["memory"] == out["example"]
    assert out["by_prompt"]["answer"] == out["explanation"]["by_prompt"]["answer"] == "2"
    assert out["example"]["memory_id"] == out["by_prompt"]["memory_id"] == out["memory_id"]
    use = runtime.bank.use("default", out["use_id"])
    assert (use.memory_answer, use.zero_shot_answer, use.answer) == ("3", "1", "3")


def test_an_opinion_that_says_what_the_words_say_serves(opened: Open) -> None:
    runtime = opened(verification={"example": True, "opinions": 1})
    build_graph(runtime).invoke({"question": "What is 7 times 7?"})
    graph = taught(runtime, memory="2", plain="1", example="3")
    told = graph.invoke(SECOND, context={**EXPLAIN, "note": False})["explanation"]["retrieval"]["candidates"]
    nearest, other = (one["memory_id"] for one in told)
    model: Any = runtime.model
    said = model.reply
    model.reply = lambda prompt, memory_id: "3" if memory_id == other else str(said(prompt, memory_id))
    out = graph.invoke(SECOND, context=EXPLAIN)
    assert (out["answer"], out["route"], out["memory_id"]) == ("3", "memory", other)
    assert "2 of 4 answers say '3'" in out["reason"]
    assert out["example"]["memory_id"] == nearest
    assert "by_prompt" not in out


def test_where_both_agree_or_nobody_wants_it_nothing_is_asked(opened: Open) -> None:
    runtime = opened()
    graph = taught(runtime, memory="1", plain="1", example="2")
    out = graph.invoke(SECOND, context=EXPLAIN)
    assert (out["answer"], out["route"], len(asked(runtime))) == ("1", "agreed", 2)
    assert out["explanation"]["example"] is None
    runtime = opened(verification={})
    graph = taught(runtime, memory="2", plain="1", example="1")
    assert graph.invoke(SECOND, context=EXPLAIN)["answer"] == "2"
    assert len(asked(runtime)) == 2


def test_an_example_that_does_not_fit_has_no_say(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = opened()
    graph = taught(runtime, memory="2", plain="1", example="1")
    model: Any = runtime.model
    monkeypatch.setattr(model, "_context_length", len(SECOND["question"]) + 200)
    monkeypatch.setattr(
        "elm_agent.integrations.langgraph.choosing.example_of", lambda *_: (FIRST["question"], "so " * 200)
    )
    out = graph.invoke(SECOND, context=EXPLAIN)
    assert (out["answer"], out["route"]) == ("2", "memory")
    assert "example" not in out
    assert "opinions" not in out["explanation"]["budget"]


def test_a_thread_forgets_its_example(opened: Open) -> None:
    runtime = opened()
    taught(runtime, memory="2", plain="1", example="1")
    graph = build_graph(runtime, checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "one"}}
    assert graph.invoke(SECOND, config, context=EXPLAIN)["example"]["answer"] == "1"
    out = graph.invoke(SECOND, config, context={**EXPLAIN, "min_similarity": 1.0})
    assert (out["route"], out["example"], out["explanation"]["example"]) == ("no_memory", None, None)
