"""Multiple choice: one letter."""

from __future__ import annotations

import re

from elm_agent.errors import InputError
from elm_agent.protocols import Message
from elm_agent.tasks.asking import ask
from elm_agent.tasks.numerals import last_box, last_match


class ChoiceTask:
    """A question with lettered choices. ``letters``: the choices there are; ``instruction`` follows the question."""

    name = "choice"

    def __init__(
        self, *, letters: str = "ABCDE", instruction: str = "\nReply with the letter of the right choice only."
    ) -> None:
        if not (letters.isascii() and letters.isalpha() and letters.isupper()):
            raise InputError(f"choice letters {letters!r} are not usable: expected capital letters such as 'ABCD'")
        self.letters = letters
        self.instruction = instruction
        upper, any_case = f"[{letters}]", f"[{letters}{letters.lower()}]"
        self._whole = re.compile(rf"[\s(\[*]*(?:\\text\{{)?[\s(\[*]*({any_case})(?![A-Za-z0-9])")
        # A small letter counts only in brackets: "the answer is a number" names no choice.
        self._ways = (
            re.compile(
                rf"(?i:answer|choice|option)\W{{0,9}}(?i:is\W{{0,9}})?(?:[(\[]({any_case})[)\]]|({upper})(?!['\w]))"
            ),
            re.compile(rf"(?m)^[ \t*(\[]{{0,9}}({upper})[ \t*)\].:]{{0,9}}$"),
            re.compile(rf"(?m)[(\[]({any_case})[)\]]|^[ \t*]{{0,9}}({upper})[.):](?=[ \t])"),
        )

    def messages(self, question: str) -> list[Message]:
        """The chat that asks ``question``. Raises ``InputError`` when it is blank."""
        return ask(question, self.instruction)

    def extract(self, text: str) -> str | None:
        """The letter in the last box, else after 'answer is', else alone on a line, else in brackets; or None."""
        boxed = self._whole.match(last_box(text) or "")
        if boxed:
            return boxed[1].upper()
        for way in self._ways:
            found = last_match(way, text)
            if found:
                return next(letter for letter in found.groups() if letter).upper()
        return None

    def equivalent(self, left: str, right: str) -> bool:
        """The same letter, whatever its case and brackets."""
        return _letter(left) == _letter(right)


def _letter(answer: str) -> str:
    return answer.strip(" \t\n()[].:*").upper()
