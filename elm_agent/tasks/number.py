"""Numbers: the last one written, compared exactly."""

from __future__ import annotations

from elm_agent.protocols import Message
from elm_agent.tasks.asking import ask
from elm_agent.tasks.numerals import last_box, last_number, plain, read_number


class NumberTask:
    """A question whose answer is one number. ``instruction`` is put after the question."""

    name = "number"

    def __init__(self, *, instruction: str = "\nReply with the final answer only, as a number.") -> None:
        self.instruction = instruction

    def messages(self, question: str) -> list[Message]:
        """The chat that asks ``question``. Raises ``InputError`` when it is blank."""
        return ask(question, self.instruction)

    def extract(self, text: str) -> str | None:
        """The last number in the last box, else the last number in ``text``, as written."""
        return last_number(last_box(text) or "") or last_number(text)

    def equivalent(self, left: str, right: str) -> bool:
        """The same exact value: ``1,234`` is ``1234.0``, ``0.5`` is ``1/2``, ``50%`` is ``50``."""
        left_value, right_value = read_number(left), read_number(right)
        if left_value is None or right_value is None:
            return plain(left).split() == plain(right).split()
        return left_value == right_value
