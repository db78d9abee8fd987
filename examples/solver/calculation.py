"""What the solver works on: the model writes a calculation, the calculator says what it comes to.

A ``Task`` and a verifier of one's own, as `open_runtime` takes them. So votes, memories and routes are about
calculations, and the model's own arithmetic does not matter. Knows no terminal and no files.
"""

from __future__ import annotations

import math
import re
from collections import Counter

from calculator import CalculationError, calculate, cleaned, find, shown

from elm_agent.errors import InputError
from elm_agent.protocols import Message
from elm_agent.records import Candidate

INSTRUCTION = "Write the calculation that answers the question, with numbers and + - * / % only."
SHOTS = (
    ("What is 23 plus 58?", "23 + 58"),
    ("A bus has 4 rows of 12 seats. How many seats are there?", "4 * 12"),
    ("What is the remainder when 50 is divided by 7?", "50 % 7"),
    ("Tom has 90 coins. He buys 3 kites for 21 coins each. How many coins are left?", "90 - 3 * 21"),
)
"""Small models do what they are shown: one example of each kind."""


class CalculationTask:
    """A question whose answer is what the first calculation of a text comes to; a text without one has no answer."""

    name = "calculation"

    def messages(self, question: str) -> list[Message]:
        """The chat that asks ``question``. Raises ``InputError`` when it is blank."""
        if not question.strip():
            raise InputError("the question is empty: expected some text")
        turns = [turn for shot in SHOTS for turn in zip(("user", "assistant"), shot, strict=True)]
        chat = [{"role": role, "content": text} for role, text in (*turns, ("user", question))]
        return [{"role": "system", "content": INSTRUCTION}, *chat]

    def extract(self, text: str) -> str | None:
        found = find(text)
        return None if found is None else shown(found[1])

    def equivalent(self, left: str, right: str) -> bool:
        """The same value: ``0.5`` is ``1/2``. What is no calculation is compared as text."""
        values = [_value(answer) for answer in (left, right)]
        if None in values:
            return left.split() == right.split()
        return values[0] == values[1]


def numbers_used(question: str, candidate: Candidate) -> float:
    """A verifier: how well the numbers of a calculation are those of the question, from 0 to 1.

    Of two that are equally good the one that the model was surer of is a little better.
    """
    found = find(candidate.text)
    if found is None:
        return 0.0
    asked, used = _numbers(question), _numbers(found[0])
    share = (asked & used).total() / max(1, (asked | used).total())
    return share + 0.001 * math.exp(candidate.mean_logprob)


def _numbers(text: str) -> Counter[str]:
    return Counter(re.findall(r"[0-9]+(?:\.[0-9]+)?", cleaned(text)))


def _value(answer: str) -> object:
    try:
        return calculate(answer)
    except CalculationError:
        return None
