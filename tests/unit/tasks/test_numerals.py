"""Finding numbers and boxes in text, and reading them exactly."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_agent.tasks.numerals import last_box, last_number, read_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7 x 8 = 56.", "56"),
        ("The answer is -5", "-5"),
        ("The answer is \u22125.", "-5"),  # unicode minus
        ("= \u201312", "-12"),  # en dash used as a minus
        ("10-5", "5"),  # a difference, not a negative number
        ("10 - 5", "5"),
        ("(-5)", "-5"),
        ("x=-5", "-5"),
        ("(3)-2", "2"),
        ("+7", "+7"),
        ("1,234", "1,234"),
        ("1,234,567.89 in all", "1,234,567.89"),
        ("$1{,}234$", "1,234"),
        ("1, 2, 3", "3"),
        ("1,2345", "2345"),
        ("3.50", "3.50"),
        ("it is 3.50.", "3.50"),
        (".5", ".5"),
        ("50%", "50%"),
        ("50\\%", "50\\%"),
        ("1/2", "1/2"),
        ("-3/4 of it", "-3/4"),
        ("\\frac{1}{2}", "\\frac{1}{2}"),
        ("so -\\dfrac{10}{3}.", "-\\dfrac{10}{3}"),
        ("1.5e3", "1.5e3"),
        ("$56$", "56"),
        ("$56", "56"),
        ("\uff15\uff16", "56"),  # full-width digits
        ("5\x006", "56"),
        ("no digits", None),
        ("", None),
        ("\x00", None),
        ("x2 and H2O", None),
        ("\u00bd \u2460 \u0663", None),  # only what is sure: no vulgar fractions, circled or Arabic-Indic digits
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("56", Fraction(56)),
        ("-5", Fraction(-5)),
        ("\u22125", Fraction(-5)),
        ("- 5", Fraction(-5)),
        ("+7", Fraction(7)),
        ("1,234", Fraction(1234)),
        ("1{,}234.50", Fraction(2469, 2)),
        ("3.50", Fraction(7, 2)),
        ("3.", Fraction(3)),
        (".5", Fraction(1, 2)),
        ("0.1", Fraction(1, 10)),  # exact, not the nearest binary fraction
        ("50%", Fraction(50)),
        ("50 \\%", Fraction(50)),
        ("$5.00", Fraction(5)),
        ("\\$5", Fraction(5)),
        ("1/2", Fraction(1, 2)),
        ("1 / 2", Fraction(1, 2)),
        ("-1/2", Fraction(-1, 2)),
        ("\\frac{1}{2}", Fraction(1, 2)),
        ("-\\frac{1}{2}", Fraction(-1, 2)),
        ("\\frac{-1}{2}", Fraction(-1, 2)),
        ("\\tfrac {4} {8}", Fraction(1, 2)),
        ("1e3", Fraction(1000)),
        ("-0", Fraction(0)),
        ("1/0", None),
        ("\\frac{1}{0}", None),
        ("1e99999", None),
        ("5 6", None),
        ("1,23", None),
        ("5 apples", None),
        ("--5", None),
        ("", None),
        (" ", None),
        ("-", None),
        (".", None),
        ("9" * 1001, None),  # longer than is read
    ],
)
def test_read_number(text: str, value: Fraction | None) -> None:
    assert read_number(text) == value


@given(st.fractions())
def test_read_number_reads_every_fraction(value: Fraction) -> None:
    assert read_number(str(value)) == value
    assert read_number(f"\\frac{{{value.numerator}}}{{{value.denominator}}}") == value


@given(st.integers(), st.integers(min_value=0, max_value=999))
def test_separators_and_trailing_zeros_do_not_count(whole: int, thousandths: int) -> None:
    plain = f"{whole}.{thousandths:03d}"
    assert read_number(f"{whole:,}.{thousandths:03d}00") == read_number(plain) == Fraction(plain)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("\\boxed{56}", "56"),
        ("first \\boxed{1} then \\boxed{2}.", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\sqrt{\\frac{a}{b^{2}}}}", "\\sqrt{\\frac{a}{b^{2}}}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed {7}", "7"),
        ("\\fbox{7}", "7"),
        ("\\boxed{ 7 }", "7"),
        ("\\boxed{}", None),
        ("\\boxed{5} and \\boxed{ }", "5"),
        ("\\boxed{5", None),
        ("\\boxed{5 then \\boxed{6}", "6"),
        ("{ open \\boxed{-7}}", "-7"),
        ("} \\boxed{8}", "8"),
        ("\\boxed{a\\}b}", "a\\}b"),
        ("\\boxed{\\boxed{9}}", "\\boxed{9}"),
        ("\\boxed{5\x00}", "5"),
        ("boxed{5}", None),
        ("\\boxed", None),
        ("\\", None),
    ],
)
def test_last_box(text: str, box: str | None) -> None:
    assert last_box(text) == box


@given(st.text(alphabet="ab{}\\\n 1", max_size=40))
def test_last_box_is_balanced(text: str) -> None:
    box = last_box(f"{text} \\boxed{{{text}}}")
    if box is not None:
        bare = box.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
        assert bare.count("{") == bare.count("}")


@given(st.text(max_size=200))
def test_any_text_is_survived(text: str) -> None:
    last_box(text)
    last_number(text)
    read_number(text)


@pytest.mark.timeout(60)  # a quadratic search would take many minutes here; a linear one takes a second
@pytest.mark.parametrize(
    "piece", ["\\boxed{", "{", "}", "\\", "1,111", "111,", "1.", "-", "9", "\\frac{1}", " ", "1/", "a", "\\boxed{1}"]
)
def test_huge_texts_are_read_in_linear_time(piece: str) -> None:
    text = piece * 300_000
    assert last_box(text) == ("1" if piece == "\\boxed{1}" else None)
    assert (last_number(text) is None) == (not any(letter.isdigit() for letter in piece))
    assert read_number(text) is None
