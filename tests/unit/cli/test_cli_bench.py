"""``bench speed``: what it refuses before it opens anything, and what a whole small run prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_calls import Elm, assert_one_sentence, error_of

from elm_agent.bench import speed
from elm_agent.bench.speed_plan import Findings
from elm_agent.cli.bench import _model
from elm_agent.settings import Settings
from elm_agent.testing.tiny import write_tiny_model


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arms", "fast"], "arm 'fast': expected trl, trl-tuned, native, native-M"),
        (["--tokens", "24,x"], "--tokens has 'x': expected whole numbers of at least 1"),
        (["--tokens", "0"], "--tokens has '0'"),
        (["--repeats", "0"], "Invalid value for '--repeats'"),
        (["--arms", "native", "--tokens", "", "--natural", "0"], "nothing is to be measured"),
    ],
)
def test_bad_input_is_one_sentence(elm: Elm, words: list[str], message: str) -> None:
    assert_one_sentence(elm("bench", "speed", *words), 2, message)


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(elm: Elm, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_sentence(
        elm("bench", "speed", "--arms", "native", "--out", "file/x"), 2, "--out file/x cannot be made"
    )


def test_an_unknown_model_is_one_sentence(elm: Elm) -> None:
    result = elm("bench", "speed", "--arms", "native", "--model", "./none", "--json")
    assert (result.exit_code, error_of(result)["type"]) == (5, "ModelUnavailable")


def test_a_small_run_tells_and_writes(elm: Elm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELM_PACK", "false")
    model = write_tiny_model(tmp_path / "tiny")
    words = ["--model", model, "--arms", "native", "--tokens", "3", "--natural", "0", "--repeats", "1"]
    result = elm("bench", "speed", *words, "--out", "here", "--json")
    assert result.exit_code == 0, result.output
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["event"] for line in told] == ["plan", "turn", "report"]
    assert (told[-1]["about"]["pack"], told[-1]["about"]["graphs"]) == (False, False)
    assert {goal["met"] for goal in told[-1]["goals"]} == {None}
    [series] = told[-1]["training"]
    assert (series["arm"], len(series["turns"]), series["turns"][0]["tokens"]) == ("native", 1, 8 * 3)
    assert 0 < series["share_of_bound"] < 1
    assert sorted(path.name for path in Path("here").iterdir()) == ["speed.json", "speed.md", "speed.png"]


def test_ways_of_drawing_are_told_one_by_one(elm: Elm, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    words = ["bench", "rollouts", "--model", model, "--steps", "1", "--tokens", "3", "--repeats", "1"]
    told = [json.loads(line) for line in elm(*words, "--json").stdout.splitlines()]
    assert [line["event"] for line in told] == ["turn"] * 10 + ["report"]
    assert [line["way"] for line in told[:5]] == [way["way"] for way in told[-1]["ways"]]
    assert told[-1]["recipe"]["max_new_tokens"] == 3
    table = elm(*words).stdout
    assert "float16, drafts" in table
    assert "exact / this" in table


def test_settings_of_the_network_reach_the_measurement() -> None:
    choice = _model(Settings(pack=False, graphs=True, overlap=True))
    assert (choice.pack, choice.graphs, choice.overlap) == (False, True, True)


def test_what_was_measured_is_kept_and_told_when_it_is_stopped(elm: Elm, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_plan: object, findings: Findings, _observe: object) -> None:
        findings.answers["generate"] = [10.0]
        raise KeyboardInterrupt

    monkeypatch.setattr(speed, "run_speed", stopped)
    result = elm("bench", "speed", "--model", "./any", "--out", "here")
    assert result.exit_code == 130
    assert "generate" in result.stdout
    assert "10.0 (10.0)" in result.stdout
    assert "stopped before its end" in result.stdout
    page, numbers, picture = sorted(Path("here").iterdir(), reverse=True)
    assert (page.name, numbers.name) == ("speed-stopped.md", "speed-stopped.json")
    assert picture.name == "speed-stopped-answers.png"
    assert "**Stopped before its end:**" in page.read_text()
    assert json.loads(numbers.read_text())["answers"]["tokens_per_s"] == {"generate": [10.0]}
