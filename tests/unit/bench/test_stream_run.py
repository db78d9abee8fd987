"""A stream answers in order, learns after each answer, and goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from elm_agent.bench.results import ResultsFile
from elm_agent.bench.stream_run import StreamParts, judged_outcome, record_faults, run_stream, summarise
from elm_agent.bench.streams import Line
from elm_agent.errors import InputError, StorageError, TaskError
from elm_agent.records import UseOutcome

ANSWERS = {"a": ("1", "1"), "b": ("2", "9"), "c": ("9", "3")}  # question: (returned, zero-shot)


class World:
    """Answers from a table and writes down what it is asked to do."""

    def __init__(self, stop_at: str | None = None) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.stop_at = stop_at

    def answer(self, question: str, subject: str | None) -> Mapping[str, Any]:
        assert subject is None
        if question == self.stop_at:
            raise StorageError("the bank is gone")
        if question == "too long":
            raise InputError("the question does not fit")
        self.log.append(("answer", question))
        returned, plain = ANSWERS[question]
        candidates = {"memory": {"answer": returned}, "zero_shot": {"answer": plain}}
        ids = {"use_id": f"use_{question}", "job_id": f"job_{question}", "memory_id": "mem_1", "similarity": 0.5}
        return {
            "answer": returned,
            "text": returned,
            "route": "memory",
            "reason": None,
            "candidates": candidates,
            **ids,
        }

    def equivalent(self, left: str, right: str) -> bool:
        if right == "?":
            raise TaskError("no such answer")
        return left == right

    def settle(self, use: str, outcome: UseOutcome) -> None:
        self.log.append(("settle", use, outcome))

    def learn(self, job: str) -> Mapping[str, Any]:
        self.log.append(("learn", job))
        return {"job_id": job, "state": "done"}

    @property
    def parts(self) -> StreamParts:
        return StreamParts(answer=self.answer, equivalent=self.equivalent, settle=self.settle, learn=self.learn)


LINES = [
    Line(1, "a", "1"),
    Line(2, None, fault="not JSON"),
    Line(3, "b", "2"),
    Line(4, "too long"),
    Line(5, "c", "3"),
]


def run(path: Path, world: World, lines: list[Line] = LINES) -> tuple[Any, list[str]]:
    seen: list[str] = []

    def tell(name: str, detail: Mapping[str, Any]) -> None:
        seen.append(f"{name} {detail['line']}")

    with ResultsFile(path) as results:
        record_faults(lines, results, observe=tell)
        run_stream(lines, results, world.parts, observe=tell)
        return summarise(lines, results), seen


def test_each_answer_comes_before_its_learning_and_before_the_next_question(tmp_path: Path) -> None:
    world = World()
    summary, seen = run(tmp_path / "r.jsonl", world)
    assert world.log == [
        ("answer", "a"),
        ("settle", "use_a", UseOutcome.BOTH_RIGHT),
        ("learn", "job_a"),
        ("answer", "b"),
        ("settle", "use_b", UseOutcome.FIXED),
        ("learn", "job_b"),
        ("answer", "c"),
        ("settle", "use_c", UseOutcome.BROKEN),
        ("learn", "job_c"),
    ]
    assert seen == [
        "failure 2",
        "answer 1",
        "learned 1",
        "answer 3",
        "learned 3",
        "failure 4",
        "answer 5",
        "learned 5",
    ]
    assert (summary.lines, summary.answered, summary.failed, summary.judged) == (5, 3, 2, 3)
    assert (summary.right, summary.zero_shot_right, summary.fixed, summary.broken) == (2, 2, 1, 1)
    assert summary.routes == {"memory": 3}


def test_a_stopped_stream_goes_on_without_asking_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with pytest.raises(StorageError):
        run(path, World(stop_at="c"))
    world = World()
    summary, _ = run(path, world)
    assert [entry for entry in world.log if entry[0] == "answer"] == [("answer", "c")]
    whole, _ = run(tmp_path / "whole.jsonl", World())
    assert replace(summary, seconds_per_answer=None) == replace(whole, seconds_per_answer=None)
    assert path.read_text("utf-8").count("\n") == 5  # the failures are not told twice


def test_a_mended_line_of_the_input_is_asked(tmp_path: Path) -> None:
    run(tmp_path / "r.jsonl", World())
    world = World()
    summary, _ = run(tmp_path / "r.jsonl", world, [LINES[0], Line(2, "b", "2"), *LINES[2:]])
    assert ("answer", "b") in world.log
    assert (summary.answered, summary.failed) == (4, 1)


@pytest.mark.parametrize("lines", [[Line(1, "another")], [Line(1, None, fault="not JSON")], []])
def test_results_of_other_input_are_refused(tmp_path: Path, lines: list[Line]) -> None:
    run(tmp_path / "r.jsonl", World(), LINES[:1])
    before = (tmp_path / "r.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"made from other input \(line 1 differs\)"):
        run(tmp_path / "r.jsonl", World(), lines)
    assert (tmp_path / "r.jsonl").read_bytes() == before


def test_a_longer_input_goes_on(tmp_path: Path) -> None:
    run(tmp_path / "r.jsonl", World(), LINES[:1])
    assert run(tmp_path / "r.jsonl", World())[0].answered == 3


def test_a_comparison_that_fails_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    world = World()
    summary, _ = run(tmp_path / "r.jsonl", world, [Line(1, "a", "?")])
    with ResultsFile(tmp_path / "r.jsonl") as results:
        assert results.records[1]["judging_failed"] == "no such answer"
        assert results.records[1]["right"] is None
    assert (summary.judged, summary.right) == (0, 0)
    assert not [entry for entry in world.log if entry[0] == "settle"]


@pytest.mark.parametrize(
    ("zero_shot", "right", "outcome"),
    [
        (False, True, UseOutcome.FIXED),
        (True, False, UseOutcome.BROKEN),
        (True, True, UseOutcome.BOTH_RIGHT),
        (False, False, UseOutcome.BOTH_WRONG),
    ],
)
def test_outcomes(zero_shot: bool, right: bool, outcome: UseOutcome) -> None:
    assert judged_outcome(zero_shot, right) is outcome
