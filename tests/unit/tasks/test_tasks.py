"""The built-in tasks: asking, extracting, comparing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_agent.errors import InputError
from elm_agent.protocols import Task
from elm_agent.tasks import CHAIN_OF_THOUGHT, ChoiceTask, MathTask, NumberTask, TextTask, get_task
from elm_agent.tasks.mathematics import normal_form


@pytest.mark.parametrize("name", ["math", "number", "choice", "text"])
def test_get_task_by_name(name: str) -> None:
    task: Task = get_task(name)
    assert task.name == name
    (message,) = task.messages("What is 7 times 8?")
    assert message["role"] == "user"
    assert message["content"].startswith("What is 7 times 8?")


def test_unknown_task_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown task 'maths': expected one of choice, math, number, text"):
        get_task("maths")


@pytest.mark.parametrize("name", ["math", "number", "choice", "text"])
@pytest.mark.parametrize("question", ["", "  \n\t"])
def test_blank_questions_are_refused(name: str, question: str) -> None:
    with pytest.raises(InputError, match="the question is empty"):
        get_task(name).messages(question)


def test_instructions() -> None:
    assert MathTask().messages("q")[0]["content"] == "q\nReply with the final answer only, in \\boxed{}."
    assert MathTask(instruction=CHAIN_OF_THOUGHT).messages("q")[0]["content"] == (
        "q\nPlease reason step by step, and put your final answer within \\boxed{answer}."
    )
    assert TextTask().messages("q")[0]["content"] == "q"


@given(st.sampled_from(["math", "number", "choice", "text"]), st.text(max_size=100))
def test_extract_survives_any_text_and_never_returns_blank(name: str, text: str) -> None:
    answer = get_task(name).extract(text)
    assert answer is None or answer.strip()


@pytest.mark.parametrize("name", ["math", "number", "choice", "text"])
def test_extract_survives_huge_text(name: str) -> None:
    task = get_task(name)
    task.extract("\\boxed{" * 50_000)
    task.extract("9" * 100_000)
    task.extract("\x00" * 100_000)


# --- mathematics (what needs algebra is in test_algebra) --------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So \\boxed{\\frac{1}{2}} it is, for all 3 of us.", "\\frac{1}{2}"),
        ("7 x 8 = 56.", "56"),
        ("\\boxed{} hm, 12", "12"),
        ("\\boxed{12", "12"),
        ("The answer is \\frac{1}{2}.", "\\frac{1}{2}"),
        ("I do not know.", None),
        ("\x00", None),
    ],
)
def test_math_extract(text: str, answer: str | None) -> None:
    assert MathTask().extract(text) == answer


class NoAlgebra:
    """Fails the test when text and exact numbers should have been enough."""

    time_limit = 1.0

    def same(self, left: str, right: str) -> bool:
        raise AssertionError(f"asked to compare {left!r} with {right!r}")

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("56", "56", True),
        ("56", "57", False),
        ("56", "56.0", True),
        ("3.50", "3.5", True),
        ("1,234", "1234", True),
        ("\u22125", "-5", True),
        ("5", "-5", False),
        ("\\frac{1}{2}", "0.5", True),
        ("\\dfrac{1}{2}", "\\tfrac{2}{4}", True),
        ("1/3", "0.333", False),
        ("x = 5", "5", True),
        ("\\text{B}", "B", True),
        ("$5$", "5", True),
        ("\\$5.00", "5", True),
        ("50\\%", "50", True),
        ("90^\\circ", "90", True),
        ("90^{\\circ}", "90", True),
        ("\\left( 1, 2 \\right)", "(1,2)", True),
        ("a b", "a  b", True),
        ("", "5", False),
        ("5\x00", "5", True),
        ("9" * 5000, "9" * 5000, True),
        ("9" * 5000, "9" * 5001, False),
        ("x" * 5000, "5", False),
    ],
)
def test_math_fast_path_needs_no_process(left: str, right: str, same: bool) -> None:
    task = MathTask(algebra=NoAlgebra())  # type: ignore[arg-type]
    assert task.equivalent(left, right) is same
    assert task.equivalent(right, left) is same


@given(st.text(alphabet="\\{}()$%=x1 .,^~", max_size=30))
def test_normal_form_is_stable_on_what_it_made(text: str) -> None:
    form = normal_form(text)
    assert "$" not in form
    assert form == form.strip()


# --- number -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("7, 8, so 56", "56"),
        ("\\boxed{56} because 7 and 8", "56"),
        ("\\boxed{five} or 5", "5"),
        ("The cost is $1,234.50.", "1,234.50"),
        ("none", None),
    ],
)
def test_number_extract(text: str, answer: str | None) -> None:
    assert NumberTask().extract(text) == answer


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("1,234", "1234.0", True),
        ("0.5", "1/2", True),
        ("50%", "50", True),
        ("0.1", "0.10000000000000000001", False),
        ("\u22123", "-3", True),
        ("3", "-3", False),
        ("5/0", "5/0", True),
        ("5/0", "5", False),
        ("five", " five ", True),
    ],
)
def test_number_equivalent(left: str, right: str, same: bool) -> None:
    assert NumberTask().equivalent(left, right) is same
    assert NumberTask().equivalent(right, left) is same


# --- choice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B).", "B"),
        ("the answer is (b)", "B"),
        ("The answer is B", "B"),
        ("Answer: C", "C"),
        ("**Answer:** D", "D"),
        ("The correct option is **E**.", "E"),
        ("\\boxed{B}", "B"),
        ("\\boxed{\\text{(b)}}", "B"),
        ("\\boxed{\\textbf{(C) }12}", "C"),
        ("B", "B"),
        ("(C)", "C"),
        ("D.", "D"),
        ("B) because it is larger", "B"),
        ("Some words.\nB\n", "B"),
        ("(A) is wrong, so (D)", "D"),
        ("First I thought the answer is A. No: the answer is (C).", "C"),
        ("\\boxed{B} although the answer is (C)", "B"),
        ("the answer is a number", None),
        ("The answer is Because", None),
        ("A cat sat.", None),
        ("F", None),
        ("\\boxed{Banana}", None),
        ("", None),
    ],
)
def test_choice_extract(text: str, letter: str | None) -> None:
    assert ChoiceTask().extract(text) == letter


def test_choice_letters_are_a_setting() -> None:
    assert ChoiceTask(letters="ABCDEFGHIJ").extract("The answer is (J).") == "J"
    assert ChoiceTask(letters="AB").extract("The answer is (C).") is None
    with pytest.raises(InputError, match="expected capital letters"):
        ChoiceTask(letters="ab]")


def test_choice_equivalent() -> None:
    assert ChoiceTask().equivalent("(b)", "B")
    assert not ChoiceTask().equivalent("A", "B")


# --- text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [("  Paris.\n", "Paris."), ("\\boxed{Paris} in France", "Paris"), (" \n", None), ("\x00", None)],
)
def test_text_extract(text: str, answer: str | None) -> None:
    assert TextTask().extract(text) == answer


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("Paris.", "paris", True),
        ("New  York", "new york", True),
        ("Stra\u00dfe", "STRASSE", True),
        ("\ufb01ne", "fine", True),
        ("Paris", "London", False),
        ("!", "?", False),
        ("C++", "C", False),
    ],
)
def test_text_equivalent(left: str, right: str, same: bool) -> None:
    assert TextTask().equivalent(left, right) is same
    assert TextTask().equivalent(right, left) is same
