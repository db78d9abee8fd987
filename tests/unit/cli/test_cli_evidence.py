"""``bench online|offline|transfer``: what they print and store, and a run that is killed by the system."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Elm, assert_one_sentence, error_of, wait_until

from elm_agent.bench.evidence.contract import GenerationLine, Phase
from elm_agent.bench.evidence.folder import read_run
from elm_agent.bench.evidence.methods.zero_shot import ZeroShot
from elm_agent.cli import evidence
from elm_agent.testing.tiny import write_tiny_model

FEW = {"STEPS": 1, "ROLLOUTS": 2, "MAX_NEW_TOKENS": 3, "VIRTUAL_TOKENS": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FEW.items():
        monkeypatch.setenv(f"ELM_LEARNING__{name}", str(value))
    monkeypatch.setenv("ELM_TASK", "text")


def words(tiny: Path, protocol: str, *more: object) -> list[object]:
    return ["bench", protocol, "--model", tiny, "--max-new-tokens", 4, "--seeds", 0, "--out", "run", *more]


def write_questions(rows: int) -> str:
    lines = [json.dumps({"question": f"say {number}", "answer": "no"}) for number in range(rows)]
    Path("mine.jsonl").write_text("\n".join([*lines, '{"question": "say 0", "answer": "no"}', '{"question": "x"}\n']))
    return "mine.jsonl"


def said(lines: tuple[GenerationLine, ...]) -> list[tuple[Any, ...]]:
    return [(line.phase, line.item_id, line.answer, line.memory_item, line.route, line.correct) for line in lines]


def test_a_stream_is_told_stored_and_summed_up(elm: Elm, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = ["--tasks", write_questions(2), "--methods", "zero_shot,elm_kv"]
    monkeypatch.setattr(sys, "argv", ["/bin/elm-agent", "bench", "online"])
    result = elm(*words(tiny, "online", *tasks, "--json"))
    assert result.exit_code == 0, result.output
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["event"] for line in told if line["event"] != "prepare"] == [
        *("sets", "start", "method", "answer", "answer", "answer"),
        *("method", "answer", "learn", "answer", "learn", "answer", "learn", "summary"),
    ]
    made = told[0]["sets"]["mine.jsonl"]
    assert made["faults"] == [{"where": "line 4", "reason": "the answer field is missing or null"}]
    assert made["duplicates"] == [["00001", "00003"]]
    assert (told[1]["answers"], told[1]["done"], told[1]["learnings"], told[1]["learned"]) == (6, 0, 3, 0)
    plain, memory = told[-1]["methods"]
    assert (plain["method"], plain["asked"], plain["right"], plain["failed"]) == ("zero_shot", 3, 0, 0)
    assert (memory["method"], memory["zero_shot"], memory["fixed"], memory["broken"]) == ("elm_kv", 0, 0, 0)
    assert memory["learn_tokens"] > 0
    run = read_run(Path("run"))
    assert len(run.lines) == 9
    assert run.run["model"]["id"].startswith("sha256:")
    assert run.run["environment"]["command"] == "elm-agent bench online"

    again = elm(*words(tiny, "online", *tasks))
    assert again.exit_code == 0, again.output
    assert "mine: 3 questions" in again.stderr
    assert "not used: line 4: the answer field is missing or null" in again.stderr
    assert "1 questions come more than once, the first as 00001, 00003" in again.stderr
    assert "6 of 6 answers are there" in again.stderr
    assert "elm_kv" in again.stdout
    assert "run/generations.jsonl" in again.stdout
    assert read_run(Path("run")).lines == run.lines


@pytest.mark.parametrize("concurrency", [1, 4], ids=["one by one", "in a cohort"])
@pytest.mark.parametrize("protocol", ["online", "offline", "transfer"])
def test_the_bar_counts_answers_and_learnings_each_once(
    elm: Elm, tiny: Path, monkeypatch: pytest.MonkeyPatch, protocol: str, concurrency: int
) -> None:
    told: list[tuple[int, str, int | None]] = []

    @contextmanager
    def bar(*_given: object, **_more: object) -> Iterator[Any]:
        yield lambda finished, text, *, total=None: told.append((finished, text, total))

    monkeypatch.setattr(evidence, "stream_bar", bar)
    monkeypatch.setenv("ELM_WORKER__CONCURRENCY", str(concurrency))
    more = ["--source", "arithmetic:sums"] if protocol == "transfer" else []
    run = words(tiny, protocol, *more, "--tasks", "arithmetic:products", "--limit", 2, "--methods", "zero_shot,elm")
    for trainings in ([1, 1] if concurrency > 1 else [], []):  # the second time everything is there
        told.clear()
        result = elm(*run)
        assert result.exit_code == 0, result.output
        (total,) = {total for _, _, total in told if total is not None}
        assert sum(finished for finished, _, _ in told) == total == len(read_run(Path("run")).lines)
        trained = [finished for finished, text, _ in told if "memories trained" in text]
        assert trained == trainings, "it moves while memories are trained"


def test_the_other_protocols_run_and_a_difference_is_refused(elm: Elm, tiny: Path) -> None:
    tasks = ["--tasks", write_questions(2), "--methods", "zero_shot,elm"]
    result = elm(*words(tiny, "offline", *tasks))
    assert result.exit_code == 0, result.output
    assert len([line for line in read_run(Path("run")).lines if line.phase is Phase.ANSWER]) == 3 + 9

    more = elm(*words(tiny, "offline", *tasks, "--limit", 2))
    assert_one_sentence_among(more, "run is another run: plan.limit is 20 there and 2 here")

    moved = words(tiny, "transfer", "--source", "arithmetic:sums", "--tasks", "arithmetic:products", "--limit", 2)
    result = elm(*moved, "--out", "moved", "--methods", "elm")
    assert result.exit_code == 0, result.output
    assert {(line.source, line.task) for line in read_run(Path("moved")).lines} == {
        ("arithmetic:sums", "arithmetic:sums"),
        ("arithmetic:sums", "arithmetic:products"),
    }


def assert_one_sentence_among(result: Any, sentence: str) -> None:
    """Notes on the task sets stand before it."""
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: {sentence}"), result.stderr
    assert result.exit_code == 2


def test_bad_words_are_one_sentence(elm: Elm) -> None:
    assert_one_sentence(elm("bench", "online", "--seeds", "one"), 2, "--seeds has 'one'")
    assert_one_sentence(elm("bench", "online", "--methods", "magic"), 2, "unknown method 'magic': expected some of")
    result = elm("bench", "transfer", "--source", "", "--json")
    assert (result.exit_code, error_of(result)["type"]) == (2, "InputError")


def test_ctrl_c_says_how_to_go_on(elm: Elm, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answer = ZeroShot.answer

    def stopped(self: ZeroShot, item: Any) -> Any:
        asked.append(item.id)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answer(self, item)

    monkeypatch.setattr(ZeroShot, "answer", stopped)
    tasks = ["--tasks", write_questions(3), "--methods", "zero_shot", "--together", 1]
    result = elm(*words(tiny, "online", *tasks))
    assert result.exit_code == 130
    assert "stopped; 2 of the answers asked for are in run; the same command goes on with them" in result.stderr
    result = elm(*words(tiny, "online", *tasks))
    assert result.exit_code == 0, result.output
    assert len(read_run(Path("run")).lines) == 4


def test_a_killed_process_loses_nothing(elm: Elm, tiny: Path) -> None:
    tasks = ["--tasks", write_questions(5), "--methods", "zero_shot,elm", "--together", 1]
    result = elm(*words(tiny, "online", *tasks, "--out", "whole"))
    assert result.exit_code == 0, result.output
    command = [sys.executable, "-m", "elm_agent.cli", *map(str, words(tiny, "online", *tasks))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    file = Path("run/generations.jsonl")
    wait_until(lambda: file.exists() and file.read_bytes().count(b"\n") >= 9, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = read_run(Path("run")).lines
    result = elm(*words(tiny, "online", *tasks))
    assert result.exit_code == 0, result.output
    lines = read_run(Path("run")).lines
    assert lines[: len(before)] == before
    assert said(lines) == said(read_run(Path("whole")).lines)
