"""The solver of examples/solver: its calculator, its task and verifier, and the whole of it on a tiny model."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import solver
from calculation import CalculationTask, numbers_used
from calculator import OPERATORS, CalculationError, calculate, find, shown
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from elm_agent import UseOutcome, open_bank, open_runtime
from elm_agent.bench.streams import Line, read_questions
from elm_agent.protocols import Task
from elm_agent.records import Candidate
from elm_agent.settings import Settings
from elm_agent.testing.conformance import TaskSuite
from elm_agent.testing.doubles import FakeModel, FakeTrainer
from elm_agent.verification import CallableVerifier

# --- the calculator -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 * 4", "14"),
        ("(2 + 3)*4", "20"),
        ("7 / 2", "3.5"),
        ("1/3 + 1/3", "2/3"),
        ("95 % 8", "7"),
        ("17 // 5", "3"),
        ("-3 - -4", "1"),
        ("1,234 + 1", "1235"),
        ("12 × 3 − 1", "35"),
        ("6 x 7", "42"),
        ("007 + 1", "8"),
        ("0.1 + 0.2", "0.3"),
        ("1.05 * 2", "2.1"),
        ("20 / 0.5", "40"),
    ],
)
def test_it_works_out(text: str, value: str) -> None:
    assert shown(calculate(text)) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 +",
        "1 / 0",
        "5 % 0",
        "a + 1",
        "2 ** 9",
        "9**9**9**9",
        "1e9",
        "0b1",
        "3j",
        "True + 1",
        "[1]",
        "__import__('os').system('true')",
        "(" * 150,
        "1+" * 150 + "1",
        "٣ + ٤",
        "1\n+ 2",
    ],
)
def test_it_refuses_in_one_sentence(text: str) -> None:
    with pytest.raises(CalculationError) as refused:
        calculate(text)
    assert "\n" not in str(refused.value)


@st.composite
def calculations(draw: Callable[[Any], Any], depth: int = 3) -> tuple[str, Fraction]:
    """A calculation as text, fully in brackets, and its value worked out beside it."""
    if depth == 0 or draw(st.booleans()):
        number = draw(st.integers(0, 99))
        return str(number), Fraction(number)
    (left, a), (right, b) = draw(calculations(depth - 1)), draw(calculations(depth - 1))
    sign = draw(st.sampled_from("+-*/%" if b else "+-*"))
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else a, "%": a % b if b else a}[sign]
    return f"({left} {sign} {right})", value


@given(calculations())
def test_it_agrees_with_fractions(made: tuple[str, Fraction]) -> None:
    text, value = made
    assert calculate(text) == value
    assert Fraction(shown(value)) == value


@given(st.text(st.sampled_from("0123456789+-*/%() .,xX\n=a²٣×"), max_size=300) | st.text(max_size=100))
def test_any_text_is_read(text: str) -> None:
    found = find(text)
    if found is not None:
        assert calculate(found[0]) == found[1]
        assert shown(found[1])


def test_the_first_calculation_counts_and_a_bare_number_is_none() -> None:
    assert find("The answer is 12 + 7 = 19, not 3 * 4.") == ("12 + 7", Fraction(19))
    assert find("First (2 + , then 5 * 4.") == ("5 * 4", Fraction(20))
    assert find("That makes (7 * 8), so 56.") == ("(7 * 8)", Fraction(56))
    assert find("\\(7 * 8\\)") == ("7 * 8", Fraction(56))
    assert find("It is 19.") is None
    assert find("-19") is None
    assert find("") is None


def test_powers_are_not_offered() -> None:
    assert len(OPERATORS) == 6
    assert find("9 ** 9") is None


# --- the task and the verifier --------------------------------------------------------------------------------


class TestCalculationTask(TaskSuite):
    equal = (("1/2", "0.5"), ("56", "56.0"), ("7 * 8", "56"))
    different = (("1/2", "1/3"), ("56", "57"))
    boxed = (("\\boxed{7 * 8}", "56"), ("7 * 8 = 54", "56"))

    @pytest.fixture
    def task(self) -> Task:
        return CalculationTask()


def written(text: str, mean_logprob: float = -1.0) -> Candidate:
    return Candidate(
        text=text,
        answer=CalculationTask().extract(text),
        tokens=3,
        mean_logprob=mean_logprob,
        self_certainty=1.0,
        finished=True,
        seconds=0.0,
    )


def test_the_verifier_wants_the_numbers_of_the_question() -> None:
    question = "A pen costs 4 dollars. Ann buys 7 pens and pays with 1,050 dollars."
    best = numbers_used(question, written("1050 - 4 * 7"))
    assert best == pytest.approx(1 + 0.001 * math.exp(-1))
    scores = [numbers_used(question, written(text)) for text in ("1050 - 4", "4 * 7 * 3", "90 - 21", "28")]
    assert best > scores[0] > scores[1] > scores[2] > scores[3] == 0
    assert scores[1] == pytest.approx(2 / 4 + 0.001 * math.exp(-1))
    assert numbers_used(question, written("1050 - 4 * 7", -0.5)) > best


# --- the solver -----------------------------------------------------------------------------------------------


def test_its_problems_can_be_asked_and_judged() -> None:
    lines = list(read_questions(solver.PROBLEMS))
    assert len(lines) >= 20
    assert len({line.question for line in lines}) == len(lines)
    for line in lines:
        assert line.fault is None
        assert line.reference is not None
        assert shown(calculate(line.reference)) == line.reference


def test_what_a_memory_did_is_noted(database_url: str, tmp_path: Path) -> None:
    """The plain row forgets a step, the row with a memory does not; the verifier prefers all numbers."""
    said = io.StringIO()
    with open_runtime(
        model=FakeModel(reply=lambda _prompt, memory_id: "(14 + 9) * 6" if memory_id else "14 + 9"),
        trainer=FakeTrainer(),
        task=CalculationTask(),
        verifier=CallableVerifier(numbers_used, name="numbers_used"),
        settings=Settings(home=tmp_path, database_url=database_url, index="exact", worker={"mode": "inline"}),
    ) as runtime:
        waiting = solver.Waiting(Console(file=said, markup=False, highlight=False, soft_wrap=True))
        working = solver.Solver(runtime, waiting, learn_from=1, out=tmp_path / "out.jsonl")
        working.solve(Line(1, "Add 27 and 15, then multiply by 3.", "126"))
        working.solve(Line(2, "Add 14 and 9, then multiply by 6.", "138"))
        working.solve(Line(3, None, fault="line 3 is not JSON"))
        working.solve(Line(4, "x" * 5000, "1"))
        working.sum_up()
        assert dict(working.counts) == {
            "answered": 2, "judged": 2, "right": 1, "plain_right": 0, "fixed": 1, "broken": 0, "unusable": 2
        }  # fmt: skip
        [use] = runtime.bank.uses("default")
        assert (use.outcome, use.route, use.answer, use.zero_shot_answer) == (UseOutcome.FIXED, "memory", "138", "23")
        [memory] = runtime.bank.memories("default")
        assert (memory.question, memory.fixed, memory.task) == (
            "Add 27 and 15, then multiply by 3.", 1, "calculation"
        )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [(row["line"], row["answer"], row["reference"]) for row in rows] == [(1, "23", "126"), (2, "138", "138")]
    told = said.getvalue()
    assert "writes: 14 + 9\n     calculator: 14 + 9 = 23   [no_memory] wrong, it is 126" in told
    assert "calculator: (14 + 9) * 6 = 138; without the memory 14 + 9 = 23   [memory] right" in told
    assert "right: 1 of 2, without memories 0; memories fixed 1 and broke 0" in told


@pytest.fixture
def environment(short_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in short_environment.items():
        if name.startswith("ELM_"):
            monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("environment")
def test_it_works_through_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert solver.main(["--short", "--out", str(tmp_path / "out.jsonl")]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.count("calculator: ") >= 5
    assert "5 answered, 0 could not be asked" in told.out
    assert len((tmp_path / "out.jsonl").read_text("utf-8").splitlines()) == 5
    bank = open_bank()
    [memory] = bank.memories("solver")
    assert (memory.task, memory.question) == ("calculation", next(read_questions(solver.PROBLEMS)).question)
    bank.close()


class Typing(io.StringIO):
    """A terminal whose user presses Ctrl-C when nothing is left to say."""

    def readline(self, *args: Any) -> str:
        line = super().readline(*args)
        if not line:
            raise KeyboardInterrupt
        return line


@pytest.mark.usefixtures("environment")
def test_problems_are_typed_in_until_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Typing("What is 2 plus 3?\n\x00\n"))
    assert solver.main(["--ask", "--short"]) == 130
    told = capsys.readouterr().out
    assert "\nStopped." in told
    assert "1 answered, 1 could not be asked" in told


@pytest.mark.parametrize("text", ["What is 2 plus 3?\n", "What is 2 plus 3?\n\n"])
def test_the_last_typed_problem_is_followed_by_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert [line.question for line in solver.typed(Console(file=io.StringIO()))] == ["What is 2 plus 3?"]


@pytest.mark.usefixtures("environment")
def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert solver.main([str(tmp_path / "none.jsonl")]) == 2
    assert capsys.readouterr().err.startswith("error: question file ")
