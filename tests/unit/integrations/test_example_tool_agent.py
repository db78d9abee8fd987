"""The agent of examples/solver that calls the calculator by itself, on an engine whose tokens are written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tool_agent

from elm_agent.errors import ElmError
from elm_agent.testing.tiny import CHATML

Open = Callable[..., Any]
QUESTION = "What is '73 * 46 + 19'?"


def test_calls_results_and_words_are_shown_and_learnt_from(opened: Open, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = opened()
    tool_agent.solve(tool_agent.build_solver(runtime), QUESTION)
    told = capsys.readouterr().out
    assert "calls calculator(73 * 46 + 19)\n" in told
    assert "calculator: 3377\n" in told
    assert "I think it is 56." in told
    [memory] = runtime.bank.memories("default")
    assert memory.question == QUESTION
    tool_agent.solve(tool_agent.build_solver(runtime), "What is '12 * 12'?")
    assert "calculator: 144" in capsys.readouterr().out
    assert [use.memory_id for use in runtime.bank.uses("default")] == [memory.id]


def test_a_calculation_that_cannot_be_done_is_said_to_the_model(
    opened: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    tool_agent.solve(tool_agent.build_solver(opened()), "What is '1 / 0'?")
    assert "calculator: '1 / 0' cannot be worked out" in capsys.readouterr().out


def test_a_model_without_a_place_for_tools_says_so(opened: Open) -> None:
    with pytest.raises(ElmError, match="tools"):
        tool_agent.solve(tool_agent.build_solver(opened(template=CHATML)), QUESTION)
