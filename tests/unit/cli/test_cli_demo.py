"""``demo``: what it tells and what it leaves. Model and trainer pretend; stream, bank and graph are real."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from cli_calls import Elm

pytestmark = pytest.mark.usefixtures("fake")

PNG = b"\x89PNG\r\n\x1a\n"


def test_it_tells_each_question_each_step_and_a_table(elm: Elm, tmp_path: Path) -> None:
    result = elm("demo", "--short", "--seed", 3)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("fake, seed 3, bank demo-3-")
    assert sum("| " in line and "zero-shot" in line for line in lines) == 4
    assert sum("vote share" in line and "reward" in line for line in lines) == 2, "one memory, two steps"
    assert any("learned mem_" in line for line in lines)
    for row in ("zero-shot", "agent with memories", "fixed / broken by memories", "seconds per memory", "bank"):
        assert any(line.strip().startswith(row) for line in lines), row
    assert "Try next:" in lines
    [picture] = tmp_path.rglob("*.png")
    assert picture.read_bytes().startswith(PNG)


def test_the_commands_to_try_next_work(elm: Elm) -> None:
    told = [json.loads(line) for line in elm("demo", "--short", "--json").stdout.splitlines()]
    report = told[-1]
    assert (report["event"], report["memories"], report["summary"]["answered"]) == ("report", 1, 4)
    assert len(report["next_commands"]) == 3
    for command in report["next_commands"]:
        _, *words = shlex.split(command)
        assert elm(*words).exit_code == 0, command


def test_without_a_name_in_the_path_the_commands_begin_with_the_program(
    elm: Elm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / ".venv/bin/elm-agent")])
    told = elm("demo", "--questions", 1, "--memories", 0, "--model", "my model", "--json").stdout.splitlines()
    for command in json.loads(told[-1])["next_commands"]:
        assert shlex.split(command)[0] == ".venv/bin/elm-agent"
        assert shlex.split(command)[-2:] == ["--model", "my model"]


def test_learning_comes_after_the_answer_and_stops_at_the_number_asked_for(elm: Elm) -> None:
    told = [json.loads(line) for line in elm("demo", "--questions", 5, "--memories", 2, "--json").stdout.splitlines()]
    names = [event["event"] for event in told if event["event"] in ("answer", "learned")]
    assert names == ["answer", "learned"] * 2 + ["answer"] * 3
    assert [event["line"] for event in told if event["event"] == "answer"] == [1, 2, 3, 4, 5]


def test_the_same_seed_asks_the_same(elm: Elm) -> None:
    def asked(seed: int, home: str) -> list[str]:
        words = ("--questions", 6, "--memories", 0, "--seed", seed, "--home", home, "--json")
        told = [json.loads(line) for line in elm("demo", *words).stdout.splitlines()]
        return [event["question"] for event in told if event["event"] == "answer"]

    first = asked(1, "a")
    assert len(first) == 6
    assert asked(1, "b") == first
    assert asked(2, "c") != first
