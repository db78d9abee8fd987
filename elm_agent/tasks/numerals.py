"""Numbers and boxes in text: finding them and reading them exactly. Knows nothing of tasks, models or sympy.

Everything here is linear in the length of the text and never raises on odd input.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction

MAX_ANSWER = 1000
"""Longest answer, in characters, that is read as a number or handed to algebra; above it only text is compared."""

_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2212\ufe63\uff0d\u2010\u2011\u2012\u2013", "-"),
        **dict.fromkeys("\u00a0\u2007\u2009\u202f\u200b", " "),
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
        "\u2044": "/",
        "\uff0e": ".",
        "\uff0c": ",",
        "\uff05": "%",
        "\x00": None,
    }
)

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)(?:[eE][-+]?[0-9]{{1,3}}(?![0-9]))?"
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}%])[-+])?"  # a sign belongs to the number only if nothing stands before it: 10-5 ends in 5
    r"(?:\\[dt]?frac\s?\{(?P<up>[-+]?[0-9]+)\}\s?\{(?P<down>[-+]?[0-9]+)\}"
    rf"|(?<![A-Za-z0-9_])(?P<whole>{_DECIMAL})(?:/(?P<over>{_DIGITS}))?)"
    r"(?:\s?\\?%)?"
)
_BRACES = re.compile(r"\\(?:boxed|fbox)\s{0,9}\{|\\.|[{}]", re.DOTALL)


def plain(text: str) -> str:
    """``text`` with typographic minus signs, digits and spaces made ASCII, and without NUL."""
    return text.translate(_PLAIN)


def last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last of the matches that ``finditer`` gives, or None."""
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0] if last else None


def last_number(text: str) -> str | None:
    """The last number written in ``text``, as written, or None."""
    found = last_match(_NUMBER, plain(text).replace("{,}", ",").replace("\\,", ""))
    return found.group().strip() if found else None


def read_number(text: str) -> Fraction | None:
    """The exact value when the whole of ``text`` is one number, else None.

    Understands signs, thousands separators, decimals, exponents, ``a/b``, ``\\frac{a}{b}``, and a currency or
    per cent sign, which is a unit and does not change the value: ``50%`` is 50.
    """
    if len(text) > MAX_ANSWER:
        return None
    text = plain(text).replace("{,}", ",").replace("\\,", "").replace("\\$", "").replace("$", "")
    text = re.sub(r"\s*/\s*", "/", text.strip())
    text = re.sub(r"^([-+])\s+", r"\1", text).removesuffix(".")
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    up, down = (match["up"], match["down"]) if match["up"] else (match["whole"], match["over"] or "1")
    denominator = Fraction(down.replace(",", ""))
    if denominator == 0:
        return None
    value = Fraction(up.replace(",", "")) / denominator
    return -value if match["sign"] == "-" else value


def last_box(text: str) -> str | None:
    """The content of the last non-empty ``\\boxed{...}`` (or ``\\fbox{...}``) with balanced braces, or None."""
    open_braces: list[int] = []  # where the content of a box begins, or -1 for any other brace
    box: str | None = None
    text = text.replace("\x00", "")
    for token in _BRACES.finditer(text):
        if token.group().endswith("{") and len(token.group()) > 2:
            open_braces.append(token.end())
        elif token.group() == "{":
            open_braces.append(-1)
        elif token.group() == "}" and open_braces:
            begin = open_braces.pop()
            if begin >= 0:
                box = text[begin : token.start()].strip() or box
    return box
