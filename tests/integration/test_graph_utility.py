"""Ranking, feedback, quarantine and explanations through runtime and graph, with parts that follow a script."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from graph_calls import FIRST, SECOND, Open
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from elm_agent import MemoryState
from elm_agent.errors import InputError, NotFound, SettingsError, StorageError
from elm_agent.integrations.langgraph import build_graph
from elm_agent.testing.doubles import FixedVerifier

EXPLAIN: Any = {"explain": True, "learn": False}


@pytest.fixture
def usual() -> dict[str, Any]:
    return {"task": "number"}


def test_an_explanation_has_every_part_of_the_scores(opened: Open) -> None:
    runtime = opened()
    graph = build_graph(runtime)
    graph.invoke(FIRST)
    out = graph.invoke(SECOND, context=EXPLAIN)
    told = out["explanation"]
    assert json.loads(json.dumps(told)) == told
    assert told["route"] == out["route"] == "memory"
    assert (
        told["why"] == "the memory's answer was taken, for verifier 'fixed' gave the memory's 1 and the plain one 0"
    )
    assert told["verifier"] == {"name": "fixed", "asked": True, "memory": 1.0, "zero_shot": 0.0}
    assert told["answers"] == {"memory": "2", "zero_shot": "1"}
    assert (told["retrieval"]["ranking"], told["retrieval"]["threshold"]) == ("nearest", -1.0)
    (one,) = told["retrieval"]["candidates"]
    assert (one["memory_id"], one["similarity"]) == (out["memory_id"], out["similarity"])
    assert (one["rank"], one["nearness"], one["used"], one["above_threshold"]) == (1, 1, True, True)
    assert (one["helped"], one["same"], one["hurt"], one["uses"], one["utility"]) == (1.0, 1.0, 1.0, 0, 0.0)
    assert one["score"] == one["similarity"]
    assert "explanation" not in graph.invoke(SECOND), "only who asks is told"


@pytest.mark.parametrize(
    ("verifier", "reply", "route", "why"),
    [
        (FixedVerifier(memory=-1), None, "zero_shot", "the plain answer was taken, for verifier 'fixed' gave"),
        (FixedVerifier(memory=0), None, "zero_shot", "'fixed' gave both the same score"),
        (None, lambda _p, _m: "\\boxed{5}", "agreed", "both answers mean the same, so no verifier was asked"),
        (None, lambda _p, m: "5" if m else "?", "memory", "without asking the verifier: the zero-shot text has no"),
        (FixedVerifier(fail=True), None, "failed_memory", "the way over the memory failed, so the plain answer st"),
    ],
)
def test_every_route_is_explained(opened: Open, verifier: Any, reply: Any, route: str, why: str) -> None:
    graph = build_graph(opened(verifier=verifier, reply=reply))
    empty = graph.invoke(FIRST, context={"explain": True})["explanation"]
    assert (empty["route"], empty["why"]) == ("no_memory", "no memory was used: the bank has no memory")
    assert empty["retrieval"]["candidates"] == []
    told = graph.invoke(SECOND, context=EXPLAIN)["explanation"]
    assert told["route"] == route
    assert why in told["why"]


def test_what_is_too_far_is_shown_as_below_the_threshold(opened: Open) -> None:
    graph = build_graph(opened())
    graph.invoke(FIRST)
    out = graph.invoke(SECOND, context={**EXPLAIN, "min_similarity": 0.999})
    (one,) = out["explanation"]["retrieval"]["candidates"]
    assert (one["above_threshold"], one["used"], out["route"]) == (False, False, "no_memory")


def test_a_threads_next_question_keeps_no_explanation(opened: Open) -> None:
    saver = InMemorySaver(serde=JsonPlusSerializer(pickle_fallback=False, allowed_msgpack_modules=None))
    graph = build_graph(opened(), checkpointer=saver)
    thread: Any = {"configurable": {"thread_id": "t"}}
    assert graph.invoke(FIRST, thread, context={"explain": True})["explanation"] is not None
    assert graph.invoke(SECOND, thread)["explanation"] is None
    assert asyncio.run(graph.ainvoke(SECOND, thread, context={"explain": True}))["explanation"] is not None


def test_explain_is_true_or_false(opened: Open) -> None:
    with pytest.raises(InputError, match="context 'explain' is true or false; got 'yes'"):
        build_graph(opened()).invoke(FIRST, context={"explain": "yes"})  # type: ignore[typeddict-item]


def test_wrong_answers_quarantine_a_memory_and_another_one_serves(opened: Open) -> None:
    """The whole way: answers, words of a user, a posterior, another order, then a quarantine that can be undone."""
    runtime = opened(utility={"ranking": "mean", "quarantine_harm": 0.9, "quarantine_uses": 4})
    graph = build_graph(runtime)
    graph.invoke(FIRST)
    first = graph.invoke(SECOND, context=EXPLAIN)
    harmful = first["memory_id"]
    report = runtime.feedback(first["use_id"], "wrong", answer="1")
    assert (report.effect, report.memory_state, report.replaced) == ("hurt", MemoryState.ACTIVE, None)
    for _ in range(3):
        report = runtime.feedback(graph.invoke(SECOND, context=EXPLAIN)["use_id"], "wrong", answer="1")
    assert (report.memory_id, report.memory_state) == (harmful, MemoryState.QUARANTINED)
    assert graph.invoke(SECOND, context=EXPLAIN)["route"] == "no_memory"
    runtime.bank.transition("default", harmful, MemoryState.ACTIVE, actor="ada", reason=None)
    told = graph.invoke(SECOND, context=EXPLAIN)
    (one,) = told["explanation"]["retrieval"]["candidates"]
    assert (one["memory_id"], one["hurt"]) == (harmful, 5.0)
    assert one["utility"] == pytest.approx(-4 / 7)
    assert one["score"] == pytest.approx(one["similarity"] * (1 - 4 / 7))


def test_feedback_is_refused_where_there_is_no_such_use(opened: Open) -> None:
    runtime = opened()
    graph = build_graph(runtime)
    graph.invoke(FIRST)
    use_id = graph.invoke(SECOND)["use_id"]
    graph.invoke(FIRST, context={"namespace": "other"})
    with pytest.raises(NotFound, match="in namespace 'other'"):
        runtime.feedback(use_id, "right", namespace="other")
    assert runtime.feedback(use_id, "right").recorded


def test_a_wrong_answer_is_learnt_again_at_once(opened: Open) -> None:
    runtime = opened(learning={"replay_rollouts": 16})
    graph = build_graph(runtime)
    graph.invoke(FIRST)
    out = graph.invoke(SECOND, context={"learn": False})
    report = runtime.feedback(out["use_id"], "wrong")
    assert (report.job_state, runtime.bank.jobs.get("default", str(report.job_id)).state) == ("queued", "done")
    (memory,) = [one for one in runtime.bank.memories("default") if one.question == SECOND["question"]]
    assert memory.recipe.rollouts == 16


@pytest.mark.parametrize(
    ("learning", "message"),
    [
        ({"replay_rollouts": 8}, r"replay_rollouts \(8\) .* more than rollouts \(8\)"),
        ({"replay_rollouts": 16, "objective": "sft_greedy"}, "no votes: leave replay_rollouts out"),
    ],
)
def test_replays_that_make_no_sense_are_refused(opened: Open, learning: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        opened(learning=learning)


def test_a_worth_that_cannot_be_read_costs_the_memory_and_no_answer(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = opened(utility={"ranking": "thompson"})
    graph = build_graph(runtime)
    graph.invoke(FIRST)

    def fail(*_: object) -> Any:
        raise StorageError("the disk is gone")

    monkeypatch.setattr(type(runtime.bank), "posteriors", fail)
    out = graph.invoke(SECOND, context=EXPLAIN)
    assert (out["answer"], out["route"]) == ("1", "failed_memory")
    assert "the disk is gone" in out["explanation"]["why"]
