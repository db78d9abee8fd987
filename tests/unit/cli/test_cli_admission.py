"""``ask --tier``, what ``ask --explain`` says of it, what ``maintain`` fits, and why a memory does not serve."""

from __future__ import annotations

import json

import pytest
from cli_calls import Elm, ask, assert_one_sentence

from elm_agent.records import KeyKind, MemoryState, UseOutcome
from elm_agent.storage.bank import Bank

pytestmark = pytest.mark.usefixtures("fake")


def test_a_tier_is_asked_for_and_explained(elm: Elm, bank: Bank) -> None:
    told = ask(elm, "--tier", "cheap", "--explain")
    assert told["explanation"]["budget"]["tier"] == "normal"
    shown = elm("ask", "What is 6 times 7?", "--no-learn", "--explain", "--tier", "thorough").stdout
    assert "tier thorough: it was asked for" in shown
    assert {use.tier for use in bank.uses("default")} == {"normal", "thorough"}
    assert_one_sentence(elm("ask", "?", "--tier", "free"), 2, "'free' is not one of 'auto', 'cheap', 'normal', 'thor")


def test_maintain_fits_and_explain_shows_it(elm: Elm, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELM_ABSTENTION__MODE", "calibrated")
    monkeypatch.setenv("ELM_ABSTENTION__MIN_USES", "2")
    monkeypatch.setenv("ELM_ABSTENTION__EXPLORE", "0")
    for _ in range(3):
        bank.settle_use("default", ask(elm)["use_id"], UseOutcome.BROKEN)
    assert "default: calibrated on 3 uses, helped 0, hurt 3: " in elm("maintain", "--yes").stdout
    found = bank.calibrations.get("default", KeyKind.INPUT)
    assert found is not None
    shown = elm("ask", "What is 6 times 7?", "--no-learn", "--explain").stdout
    assert "a chance of at least 0.5 to help, " in shown
    assert "calibrated on 3 uses" in shown
    (one,) = json.loads(elm("maintain", "--yes", "--json").stdout)["namespaces"]
    assert one["calibration"].startswith("calibrated on 3 uses")


def test_why_a_memory_does_not_serve_is_shown(elm: Elm, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELM_ADMISSION__PROBE", "true")
    monkeypatch.setenv("ELM_ADMISSION__MIN_VOTE_RISE", "0.5")
    assert elm("ask", "What is 2 times 3?", "--wait").exit_code == 0
    (memory,) = bank.memories("default", state=MemoryState.CANDIDATE)
    assert "less than min_vote_rise +0.500" in elm("memories", "show", memory.id).stdout
    events = json.loads(elm("memories", "why", memory.id, "--json").stdout)["events"]
    (gated,) = [event for event in events if event["kind"] == "gated"]
    assert gated["detail"]["criteria"]["vote_rise"] == {"bound": 0.5, "measured": 0.0, "passed": False}
