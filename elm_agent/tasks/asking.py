"""How every built-in task asks: the question, then one instruction, as a single user message."""

from __future__ import annotations

from elm_agent.errors import InputError
from elm_agent.protocols import Message


def ask(question: str, instruction: str) -> list[Message]:
    """The chat for ``question``. Raises ``InputError`` when it is blank."""
    if not question.strip():
        raise InputError("the question is empty: expected some text")
    return [{"role": "user", "content": question + instruction}]
