"""Every text that a baseline puts before the model, beside the task's own. Our words; what for is the source's.

Small models follow short instructions better than long ones, so these are short. Knows chats; knows no models.
"""

from __future__ import annotations

import re

from elm_agent.protocols import Message, Task

CHECK = (
    "Problem:\n{question}\n\nProposed solution:\n{solution}\n\n"
    "Is this solution correct? Reply with one word, yes or no."
)
"""Judges a solution without its reference (ReasoningBank, arXiv 2509.25140, section 3: it is its own judge)."""

STRATEGY = (
    "Problem:\n{question}\n\nSolution, which was judged correct:\n{solution}\n\n"
    "Write the strategy behind it in one or two sentences, so that it helps with other problems of this kind. "
    "Mention none of this problem's numbers."
)
"""What a success teaches (ReasoningBank, section 3)."""

LESSON = (
    "Problem:\n{question}\n\nSolution, which was judged wrong:\n{solution}\n\n"
    "Write in one or two sentences what to do differently, so that it helps with other problems of this kind. "
    "Mention none of this problem's numbers."
)
"""What a failure teaches (ReasoningBank, section 3)."""

WITH_STRATEGY = "A strategy from an earlier problem, which may help:\n{strategy}\n\nNow solve this problem:\n"

WITH_SHEET = "Your cheatsheet, which may help:\n{sheet}\n\nNow solve this problem:\n"

CURATE = (
    "You keep a short cheatsheet that helps to solve future problems: strategies, formulas, common mistakes.\n\n"
    "Cheatsheet so far:\n{sheet}\n\nA problem:\n{question}\n\nIts solution, which may be wrong:\n{solution}\n\n"
    "Write the whole new cheatsheet: keep what is useful, add what was learned, drop what is wrong or said twice. "
    "Put it between <cheatsheet> and </cheatsheet>."
)
"""The curator (Dynamic Cheatsheet, arXiv 2504.07952, section 2: DC-Cu)."""

EMPTY_SHEET = "(empty)"

EXPERIENCE = "Problem: {question}\nSolution: {solution}\nFeedback: {feedback}"
"""One experience as text: input, output, feedback (ExpRAG, arXiv 2511.20857, section 3.2)."""

WITH_EXPERIENCES = "Earlier problems, which may help:\n\n{experiences}\n\nNow solve this problem:\n"

FEEDBACK = {True: "judged correct", False: "judged wrong", None: "not judged"}

VERDICT_TOKENS, STRATEGY_TOKENS, SHEET_TOKENS = 16, 128, 256
"""Most tokens of a reply to ``CHECK``, of a strategy or lesson, and of a cheatsheet; ours, for small models."""

_VERDICT = re.compile(r"\b(?:(yes|correct|right|true)|(no|not|incorrect|wrong|false))\b", re.IGNORECASE)
_SHEET = re.compile(r"<cheatsheet>(.*?)(?:</cheatsheet>|\Z)", re.DOTALL | re.IGNORECASE)


def ask(text: str) -> list[Message]:
    """A chat of one message."""
    return [{"role": "user", "content": text}]


def with_text(task: Task, question: str, before: str) -> list[Message]:
    """The task's own chat with ``before`` put in front of its last message, which asks the question."""
    *earlier, last = task.messages(question)
    return [*earlier, {**last, "content": before + last["content"]}]


def verdict(reply: str) -> bool | None:
    """What a reply to ``CHECK`` says: the first word that is a verdict; None: there is none."""
    found = _VERDICT.search(reply)
    return None if found is None else found[1] is not None


def sheet_in(reply: str) -> str:
    """The sheet in a reply to ``CURATE``: what stands between the tags, all of it where there are none."""
    found = _SHEET.search(reply)
    return (found[1] if found else reply).strip()
