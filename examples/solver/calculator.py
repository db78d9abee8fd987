"""A calculator: finds a calculation in a text and works it out exactly, in fractions.

Nothing is ever evaluated as Python: the text is parsed, and only numbers, signs and six operators are followed.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction

LONGEST = 200  # characters of a calculation; without powers that keeps every number small
OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda left, right: Fraction(left // right),
    ast.Mod: operator.mod,
}
_PLAIN = str.maketrans({"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-"})
_TIMES = re.compile(r"(?<=[0-9)])[ \t]*[xX][ \t]*(?=[0-9(])")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")
_SIGNS = r"0-9 \t+\-*/%()."
_CALCULATION = re.compile(rf"[{_SIGNS}]+")
_JOINED = re.compile(r"[0-9)] *[+\-*/%]+ *[0-9(+.-]")


class CalculationError(ValueError):
    """One sentence on what cannot be worked out."""


def calculate(text: str) -> Fraction:
    """The exact value of a calculation in numbers, brackets and ``+ - * / // %``. Raises ``CalculationError``."""
    text = cleaned(text).strip()
    if len(text) > LONGEST:
        raise CalculationError(f"a calculation has at most {LONGEST} characters; got {len(text)}")
    if not _CALCULATION.fullmatch(text):
        raise CalculationError(
            f"{text[:40]!r} cannot be worked out: it takes numbers, brackets and + - * / // % alone"
        )
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError) as error:
        raise CalculationError(f"{text[:40]!r} cannot be worked out: {error}") from None


def find(text: str) -> tuple[str, Fraction] | None:
    """The first calculation of a text that can be worked out, and its value; a bare number is none."""
    for found in _CALCULATION.finditer(cleaned(text)):
        whole = " ".join(found.group().split()).lstrip(".+*/%) ").rstrip(".+-*/%( ")
        for written in (whole, whole.strip("() ")):  # brackets may be those of the sentence around it
            if not _JOINED.search(written):
                continue
            with suppress(CalculationError):
                return written, calculate(written)
    return None


def shown(value: Fraction) -> str:
    """A whole number or a short decimal as such, anything else as a fraction."""
    for places in range(7):
        scaled = abs(value) * 10**places
        if scaled.denominator == 1:
            digits = str(scaled.numerator).rjust(places + 1, "0")
            whole, rest = digits[: len(digits) - places], digits[len(digits) - places :]
            return ("-" if value < 0 else "") + whole + (f".{rest}" if rest else "")
    return f"{value.numerator}/{value.denominator}"


def cleaned(text: str) -> str:
    """``text`` with the signs and digits that calculations are written in elsewhere made plain."""
    text = _TIMES.sub(" * ", text.translate(_PLAIN))
    return _ZEROS.sub("", _THOUSANDS.sub("", text))


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return Fraction(str(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
            return OPERATORS[type(sign)](_value(left), _value(right))
    raise CalculationError("it takes numbers, brackets and + - * / // % alone")
