"""Admission, abstention and tiers through runtime and graph, on both databases, with parts that follow a script."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from graph_calls import FIRST, SECOND, Open

from elm_agent import MemoryState, Runtime, UseOutcome
from elm_agent.errors import InputError, SettingsError
from elm_agent.integrations.langgraph import build_graph
from elm_agent.records import EventKind, Tier
from elm_agent.runtime import maintain_bank
from elm_agent.testing.doubles import FakeModel

ASK: Any = {"learn": False}
WHY: Any = {"learn": False, "explain": True}


@pytest.fixture
def usual(database_url: str) -> dict[str, Any]:
    return {"task": "number", "database_url": database_url}


def taught(runtime: Runtime) -> Any:
    """The graph, and one memory in its bank."""
    graph: Any = build_graph(runtime)
    graph.invoke(FIRST)
    return graph


def settled(runtime: Runtime, graph: Any, outcome: UseOutcome, times: int) -> None:
    for _ in range(times):
        out = graph.invoke(SECOND, context={**ASK, "tier": "normal", "min_similarity": -1.0})
        runtime.bank.settle_use("default", out["use_id"], outcome)


def rows(runtime: Runtime) -> int:
    assert isinstance(runtime.model, FakeModel)
    return sum(len(batch) for batch in runtime.model.batches)


# --- admission ------------------------------------------------------------------------------------------------


def test_what_a_probe_finds_harmful_never_serves(opened: Open) -> None:
    """The first memory keeps its own question; the second one spoils the first one's."""
    runtime = opened(reply=lambda _prompt, _of: "\\boxed{42}", admission={"probe": True})
    graph = taught(runtime)
    (first,) = runtime.bank.memories("default")
    assert (first.state, first.reason) == (MemoryState.ACTIVE, None)
    assert isinstance(runtime.model, FakeModel)
    runtime.model.reply = lambda prompt, of: "1" if of and FIRST["question"] in prompt else "42"
    graph.invoke(SECOND)
    (second,) = [one for one in runtime.bank.memories("default") if one.id != first.id]
    assert second.state is MemoryState.QUARANTINED
    assert second.reason == "with it 1 of 1 past questions went wrong and 0 came right, probe_may_lose is 0"
    (event,) = runtime.bank.events("default", second.id, kind=EventKind.GATED)
    assert event.detail["probe"]["tokens"] > 0
    assert event.detail["probe"]["seconds"] >= 0
    assert graph.invoke(SECOND, context=ASK)["memory_id"] == first.id


def test_a_rule_of_the_training_keeps_a_memory_as_a_candidate(opened: Open) -> None:
    runtime = opened(admission={"min_vote_rise": 0.1})
    taught(runtime)
    (memory,) = runtime.bank.memories("default")
    assert (memory.state, str(memory.reason)[:28]) == (MemoryState.CANDIDATE, "the vote share rose by +0.00")


# --- abstention -----------------------------------------------------------------------------------------------

CALIBRATED = {"mode": "calibrated", "min_uses": 4, "explore": 0.0}


def test_a_bank_learns_to_abstain(opened: Open) -> None:
    runtime = opened(abstention=CALIBRATED)
    graph = taught(runtime)
    report = maintain_bank(runtime.bank, runtime.settings)
    assert report.namespaces[0].calibration == "0 uses told of help or harm, a calibration needs 4"
    assert graph.invoke(SECOND, context=ASK)["route"] == "memory", "nothing is known yet"
    settled(runtime, graph, UseOutcome.BROKEN, 6)
    assert maintain_bank(runtime.bank, runtime.settings, dry_run=True).namespaces[0].calibration is None
    report = maintain_bank(runtime.bank, runtime.settings)
    assert str(report.namespaces[0].calibration).startswith("calibrated on 7 uses, helped 0.25, hurt 6: ")
    out = graph.invoke(SECOND, context=WHY)
    assert (out["route"], out["use_id"]) == ("no_memory", None)
    assert "(calibrated on 7 uses)" in out["reason"]
    told = out["explanation"]["retrieval"]
    assert (told["abstention"]["uses"], told["abstention"]["min_chance"]) == (7, 0.5)
    (one,) = told["candidates"]
    assert (one["chance"] < 0.5, one["above_threshold"], one["used"]) == (True, False, False)
    assert "calibrated" in out["explanation"]["why"]


def test_it_abstains_without_upkeep_once_it_has_learnt_again(opened: Open) -> None:
    runtime = opened(abstention=CALIBRATED)
    graph = taught(runtime)
    settled(runtime, graph, UseOutcome.BROKEN, 6)
    assert graph.invoke(SECOND, context=ASK)["route"] == "memory", "nothing was learnt since"
    graph.invoke({"question": "What is 5 plus 5?"})
    fitted = runtime.bank.calibrations.get("default", runtime.settings.retrieval.key)
    assert fitted is not None
    assert fitted.uses >= 7
    out = graph.invoke(SECOND, context=ASK)
    assert (out["route"], out["memory_id"]) == ("no_memory", None)


def test_a_threshold_that_somebody_set_wins(opened: Open) -> None:
    graph = taught(runtime := opened(abstention=CALIBRATED))
    settled(runtime, graph, UseOutcome.BROKEN, 6)
    maintain_bank(runtime.bank, runtime.settings)
    assert graph.invoke(SECOND, context=ASK)["route"] == "no_memory"
    out = graph.invoke(SECOND, context={**WHY, "min_similarity": -1.0})
    assert (out["route"], out["explanation"]["retrieval"]["abstention"]) == ("memory", None)
    manual = build_graph(opened(abstention=CALIBRATED, retrieval={"min_similarity": -0.5}))
    assert manual.invoke(SECOND, context=ASK)["route"] == "memory"
    exploring = build_graph(opened(abstention=CALIBRATED | {"explore": 1.0}))
    out = exploring.invoke(SECOND, context=ASK)
    assert out["route"] == "memory"
    assert out["reason"].endswith("it is used all the same, to go on learning")
    assert build_graph(opened()).invoke(SECOND, context=ASK)["route"] == "memory", "off by default"


# --- tiers ----------------------------------------------------------------------------------------------------

CHEAP = {"tier": "cheap", "compare": 0.0}


def test_a_proven_memory_answers_alone(opened: Open) -> None:
    runtime = opened(budget=CHEAP)
    graph = taught(runtime)
    first = graph.invoke(SECOND, context=WHY)
    assert first["route"] == "memory"
    assert first["explanation"]["budget"]["tier"] == "normal"
    assert "cheap was asked for, but the memory has 0 uses" in first["explanation"]["budget"]["reason"]
    settled(runtime, graph, UseOutcome.FIXED, 12)
    before, worth = rows(runtime), runtime.bank.posteriors("default", [("default", first["memory_id"])])
    out = graph.invoke(SECOND, context=WHY)
    assert rows(runtime) == before + 1
    assert (out["route"], out["answer"], out["candidates"]["zero_shot"]) == ("memory_alone", "2", None)
    assert out["explanation"]["why"].startswith(
        "only the memory's answer was generated: the memory is proven: utility"
    )
    assert out["explanation"]["answers"] == {"memory": "2", "zero_shot": None}
    use = runtime.bank.use("default", out["use_id"])
    assert (use.tier, use.route, use.zero_shot_answer) == (Tier.CHEAP, "memory_alone", None)
    assert runtime.bank.posteriors("default", [("default", out["memory_id"])]) == worth, "nothing was compared"
    assert runtime.feedback(out["use_id"], "wrong").effect == "perhaps_hurt"
    assert runtime.feedback(out["use_id"], "right").effect == "perhaps_helped"
    again = asyncio.run(graph.ainvoke(SECOND, context=ASK))
    assert (again["route"], rows(runtime)) == ("memory_alone", before + 2)
    assert graph.invoke(SECOND, context={**ASK, "tier": "normal"})["route"] == "memory"


@pytest.mark.parametrize("how", ["raises", "has no answer"])
def test_a_cheap_answer_that_fails_costs_no_answer(opened: Open, how: str) -> None:
    runtime = opened(budget=CHEAP)
    graph = taught(runtime)
    settled(runtime, graph, UseOutcome.FIXED, 12)
    assert isinstance(runtime.model, FakeModel)
    if how == "raises":
        runtime.model.memory_error = RuntimeError("out of memory")
    else:
        runtime.model.reply = lambda _prompt, of: "no idea" if of else "\\boxed{1}"
    out = graph.invoke(SECOND, context=WHY)
    assert (out["answer"], out["route"]) == ("1", "failed_memory" if how == "raises" else "zero_shot")
    assert out["candidates"]["zero_shot"]["answer"] == "1"
    assert runtime.bank.use("default", out["use_id"]).tier is Tier.NORMAL
    assert out["explanation"]["budget"]["tier"] == "normal"


def test_a_thorough_answer_is_voted_on(opened: Open) -> None:
    runtime = opened(budget={"samples": 3}, learning={"temperature": 0.3})
    graph = taught(runtime)
    before = rows(runtime)
    out = graph.invoke(SECOND, context={**WHY, "tier": "thorough"})
    assert rows(runtime) == before + 5
    assert isinstance(runtime.model, FakeModel)
    assert [request.temperature for request in runtime.model.batches[-1]] == [0.3] * 3
    assert (out["route"], out["answer"], out["text"]) == ("zero_shot", "1", "\\boxed{1}")
    assert out["reason"] == "4 of 5 votes for '1', against '2'"
    assert out["explanation"]["budget"] == {
        "tier": "thorough", "reason": "it was asked for", "gains": {}, "vote": {"votes": 4, "voters": 5},
    }  # fmt: skip
    assert runtime.bank.use("default", out["use_id"]).tier is Tier.THOROUGH
    plain = graph.invoke(SECOND, context={**ASK, "tier": "thorough", "min_similarity": 1.0})
    assert (plain["route"], plain["answer"]) == ("no_memory", "1")


def test_a_vote_that_fails_costs_the_vote_alone(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = opened()
    graph = taught(runtime)

    def fail(_requests: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(runtime.model, "generate", fail)
    out = graph.invoke(SECOND, context={**ASK, "tier": "thorough"})
    assert (out["route"], out["answer"]) == ("memory", "2")
    assert out["reason"] == "the vote failed: RuntimeError: out of memory"


def test_auto_weighs_what_is_known(opened: Open) -> None:
    runtime = opened(budget={"tier": "auto", "compare": 0.0})
    graph = taught(runtime)
    told = graph.invoke(SECOND, context=WHY)["explanation"]["budget"]
    assert (told["tier"], sorted(told["gains"])) == ("normal", ["normal", "thorough"])
    settled(runtime, graph, UseOutcome.FIXED, 12)
    told = graph.invoke(SECOND, context=WHY)["explanation"]["budget"]
    assert (told["tier"], sorted(told["gains"])) == ("cheap", ["cheap", "normal", "thorough"])


def test_today_is_the_default(opened: Open) -> None:
    runtime = opened()
    graph = taught(runtime)
    out = graph.invoke(SECOND, context=ASK)
    assert (out["route"], "tier" in out) == ("memory", False)
    assert runtime.bank.use("default", out["use_id"]).tier is Tier.NORMAL


@pytest.mark.parametrize("wrong", ["free", 3, None, ["cheap"]])
def test_a_tier_is_one_of_four(opened: Open, wrong: Any) -> None:
    with pytest.raises(InputError, match="context 'tier' is one of auto, cheap, normal, thorough; got"):
        build_graph(opened()).invoke(FIRST, context={"tier": wrong})


def test_settings_are_checked_before_anything_is_opened(opened: Open) -> None:
    with pytest.raises(SettingsError, match=r"setting 'budget\.tier': got 'free'"):
        opened(budget={"tier": "free"})
