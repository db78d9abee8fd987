"""Free text: the words themselves."""

from __future__ import annotations

import unicodedata

from elm_agent.protocols import Message
from elm_agent.tasks.asking import ask
from elm_agent.tasks.numerals import last_box


class TextTask:
    """A question whose answer is text. ``instruction`` is put after the question; none by default."""

    name = "text"

    def __init__(self, *, instruction: str = "") -> None:
        self.instruction = instruction

    def messages(self, question: str) -> list[Message]:
        """The chat that asks ``question``. Raises ``InputError`` when it is blank."""
        return ask(question, self.instruction)

    def extract(self, text: str) -> str | None:
        """The content of the last box, else the whole text; None when nothing but space and NUL is left."""
        text = text.replace("\x00", "")
        return last_box(text) or text.strip() or None

    def equivalent(self, left: str, right: str) -> bool:
        """The same words: letter case, spacing, look-alike characters and outer punctuation do not count."""
        return _words(left) == _words(right)


def _words(answer: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
    return text.strip(" .,;:!?\"'`*") or text
