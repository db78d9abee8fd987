"""Mathematics: a boxed answer, compared as algebra."""

from __future__ import annotations

import re
from functools import lru_cache

from elm_agent.errors import TaskError
from elm_agent.protocols import Message
from elm_agent.tasks import algebra as algebra_room
from elm_agent.tasks.algebra import Algebra
from elm_agent.tasks.asking import ask
from elm_agent.tasks.numerals import MAX_ANSWER, last_box, last_number, plain, read_number

CHAIN_OF_THOUGHT = "\nPlease reason step by step, and put your final answer within \\boxed{answer}."
"""The paper's instruction (A.1), for models that can use it."""

_DROP = re.compile(r"\\(?:left|right)(?![A-Za-z])|\\[!;:,]|\\?\$|\\?%|\^\s?(?:\{\s?\\circ\s?\}|\\circ)|°|~")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s?\{([^{}\\]*)\}")
_VARIABLE = re.compile(r"^[A-Za-z]\s?=\s?(?=[^=])")
_LOOSE_SPACE = re.compile(r"(?<!\w)\s|\s(?!\w)")


class MathTask:
    """A question whose answer is an expression.

    ``instruction`` is put after the question; ``CHAIN_OF_THOUGHT`` is the paper's, the default suits small models.
    ``algebra`` is the worker that decides what text and exact numbers cannot; ``cache_size`` counts its verdicts.
    """

    name = "math"

    def __init__(
        self,
        *,
        instruction: str = "\nReply with the final answer only, in \\boxed{}.",
        algebra: Algebra | None = None,
        cache_size: int = 4096,
    ) -> None:
        self.instruction = instruction
        self._algebra = algebra or algebra_room.shared
        self._verdict = lru_cache(maxsize=cache_size)(self._ask_algebra)

    def messages(self, question: str) -> list[Message]:
        """The chat that asks ``question``. Raises ``InputError`` when it is blank."""
        return ask(question, self.instruction)

    def extract(self, text: str) -> str | None:
        """The last balanced ``\\boxed{...}``; without one the last number (small models never write the box)."""
        return last_box(text) or last_number(text)

    def equivalent(self, left: str, right: str) -> bool:
        """Same text after normalising, same exact number, or equal as algebra. Raises ``TaskError``."""
        if left == right:
            return True
        left, right = normal_form(left), normal_form(right)
        if left == right:
            return True
        left_value, right_value = read_number(left), read_number(right)
        if left_value is not None and right_value is not None:
            return left_value == right_value
        if not left or not right or max(len(left), len(right)) > MAX_ANSWER:
            return False
        verdict = self._verdict(*sorted((left, right)))
        if verdict is None:
            limit = self._algebra.time_limit
            raise TaskError(f"comparing {left[:60]!r} with {right[:60]!r} took longer than {limit:g} s")
        return verdict

    def close(self) -> None:
        """End the worker process, if one runs; a later comparison starts another."""
        self._algebra.close()

    def _ask_algebra(self, left: str, right: str) -> bool | None:
        """The verdict, or None for too slow: remembered too, so that a hard pair costs its time limit once."""
        try:
            return self._algebra.same(left, right)
        except algebra_room.Timeout:
            return None


def normal_form(answer: str) -> str:
    """``answer`` without what carries no value: sizes, spaces, currency, per cent and degree signs, ``x =``."""
    text = _DROP.sub("", plain(answer).replace("{,}", ",").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
    text = " ".join(text.split()).removesuffix(".")
    wrapped = _TEXT.fullmatch(text)
    text = _VARIABLE.sub("", wrapped[1] if wrapped else text)
    return _LOOSE_SPACE.sub("", text.strip())
