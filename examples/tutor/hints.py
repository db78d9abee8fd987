"""The ladder of hints, from a nudge to the whole answer. Pure functions of texts: no model, no memory."""

from __future__ import annotations

import re
from collections.abc import Sequence

FEWEST_WORDS = 5
"""What is left of a way once its answer is hidden needs so many words to be worth a hint."""


def ladder(
    right: str, *, taught: Sequence[str] = (), near: tuple[str, str] | None = None, way: str | None = None
) -> list[str]:
    """The hints of one problem, each telling more than the one before it; the last is the answer.

    ``taught``: by whoever wrote the problem. ``near``: question and right answer of a similar problem.
    ``way``: how the model goes about it, if it comes out right.
    """
    hints = list(taught)
    if near is not None:
        hints.append(f"Think of this one: {near[0]} That is {near[1]}.")
    hints.append(shape(right))
    shown = hidden(way, right) if way else None
    if shown is not None:
        hints.append(f"I would go like this: {shown}")
    return [*hints, f"It is {right}."]


def shape(right: str) -> str:
    """What an answer looks like, without saying it."""
    if re.fullmatch(r"\d", right):
        return f"It has one digit, and it is {'even' if int(right) % 2 == 0 else 'odd'}."
    if re.fullmatch(r"\d+", right):
        return f"It has {len(right)} digits and ends in {right[-1]}."
    if re.fullmatch(r"-\d+(\.\d+)?", right):
        return "It is below zero."
    if re.fullmatch(r"\d+[./]\d+", right):
        return "It is not a whole number."
    return f"It begins with {right[0]!r}."


def hidden(way: str, right: str) -> str | None:
    """``way`` in one line with every mention of the answer hidden; None where too few words are left to help."""
    shown = re.sub(rf"(?<![\w.]){re.escape(right)}(?!\w)", "...", " ".join(way.split()))
    words = re.findall(r"\w+", shown)
    return shown if len(words) >= FEWEST_WORDS else None
