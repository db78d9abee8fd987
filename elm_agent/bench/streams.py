"""Streams of questions: arithmetic made from a seed, and JSONL files read line by line.

Knows nothing of models, memories or results: a stream is the same whoever answers it.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elm_agent.errors import InputError
from elm_agent.records import is_storable


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its right answer, for scoring only: no learner ever sees ``reference``."""

    question: str
    reference: str
    family: str


@dataclass(frozen=True, slots=True)
class Family:
    """``templates`` take a and b; ``operands`` lists every allowed pair."""

    templates: tuple[str, ...]
    operands: Callable[[], list[tuple[int, int]]]
    solve: Callable[[int, int], int]


def square(low: int, high: int) -> list[tuple[int, int]]:
    """Every ordered pair of numbers from ``low`` to ``high``, both included."""
    return [(a, b) for a in range(low, high + 1) for b in range(low, high + 1)]


_SUM = ("What is {a} plus {b}?", "Compute {a} + {b}.", "What is {a} + {b}?")
_FAMILIES = {
    "products": Family(
        ("What is {a} times {b}?", "Compute {a} * {b}.", "What is {a} x {b}?"),
        lambda: square(2, 9),
        lambda a, b: a * b,
    ),
    "sums": Family(_SUM, lambda: square(1, 9), lambda a, b: a + b),
    "differences": Family(
        ("What is {a} minus {b}?", "Compute {a} - {b}.", "What is {a} - {b}?"),
        lambda: [(a, b) for a, b in square(1, 9) if a >= b],
        lambda a, b: a - b,
    ),
    "two_digit_sums": Family(_SUM, lambda: square(10, 99), lambda a, b: a + b),
}

FAMILIES = tuple(_FAMILIES)
"""What ``arithmetic_stream`` can make."""


def family_named(name: str) -> Family:
    """One of ``FAMILIES``."""
    return _FAMILIES[name]


def arithmetic_stream(*, seed: int, count: int, families: Sequence[str]) -> list[Problem]:
    """``count`` distinct questions, families in turn (in random order within a turn).

    A pair of operands comes back, in other words, only when its family has no new pair left. What a family
    contributes depends on ``seed`` and its name, not on the other families; a shorter stream is the beginning of a
    longer one.

    Raises:
        InputError: an unknown or repeated family, none at all, or more questions than there are.
    """
    _check_families(families)
    if count < 0:
        raise InputError(f"a stream has at least 0 questions; got {count}")
    rng = random.Random(f"{seed}/order")
    sources = {name: _questions(name, random.Random(f"{seed}/{name}")) for name in families}
    stream: list[Problem] = []
    while len(stream) < count and sources:
        for name in rng.sample(list(sources), len(sources)):
            problem = next(sources[name], None)
            if problem is None:
                del sources[name]
            else:
                stream.append(problem)
    if len(stream) < count:
        raise InputError(
            f"{', '.join(families)} have {len(stream)} distinct questions; got a count of {count}, "
            "ask for fewer or name more families"
        )
    return stream[:count]


def _check_families(families: Sequence[str]) -> None:
    known = ", ".join(FAMILIES)
    if isinstance(families, str) or not families or len(set(families)) < len(families):
        raise InputError(f"families {families!r} are not usable: expected a list of different names of {known}")
    for name in families:
        if name not in _FAMILIES:
            raise InputError(f"unknown family {name!r}: expected some of {known}")


def _questions(name: str, rng: random.Random) -> Iterator[Problem]:
    """Every question of a family once, in random order, all pairs before any comes in a second wording."""
    family = _FAMILIES[name]
    pairs = family.operands()
    wordings = {pair: rng.sample(family.templates, len(family.templates)) for pair in pairs}
    for turn in range(len(family.templates)):
        rng.shuffle(pairs)
        for a, b in pairs:
            yield Problem(wordings[a, b][turn].format(a=a, b=b), str(family.solve(a, b)), name)


# --- files ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file: a question with its reference where there is one, or the fault that makes it unusable."""

    number: int  # from 1, as editors count
    question: str | None
    reference: str | None = None
    subject: str | None = None  # whose question it is
    fault: str | None = None


def read_questions(
    path: str | os.PathLike[str],
    *,
    question_field: str = "question",
    answer_field: str = "answer",
    subject_field: str = "subject",
) -> Iterator[Line]:
    """The lines of a JSONL file, one JSON object each; blank lines are skipped but counted.

    A line that is not UTF-8, not JSON or lacks a usable field becomes a ``Line`` with a ``fault``; the rest goes
    on. The reference is optional: text, a number, or absent; so is the subject, a text.

    Raises:
        InputError: the file is not there or cannot be read.
    """
    fields = (question_field, answer_field, subject_field)
    return (
        record if isinstance(record, Line) else line_of(number, record, fields)
        for number, record in read_records(path)
    )


def read_records(path: str | os.PathLike[str]) -> Iterator[tuple[int, object]]:
    """The number and the JSON value of each line that is not blank; a ``Line`` with its fault where there is none.

    Raises:
        InputError: the file is not there or cannot be read.
    """
    file = Path(path)
    if not file.is_file():
        what = "is not a file" if file.exists() else "does not exist"
        raise InputError(f"question file {str(file)!r} {what}: expected a file of JSON objects, one a line")
    return _records(file)


def _records(file: Path) -> Iterator[tuple[int, object]]:
    try:
        with file.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if raw.strip():
                    yield number, _parse(number, raw)
    except OSError as error:
        raise InputError(f"question file {str(file)!r} cannot be read: {error.strerror}") from None


def _parse(number: int, raw: bytes) -> object:
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Line(
            number, None, fault=f"line {number} is not UTF-8: byte {error.start + 1} is 0x{raw[error.start]:02x}"
        )
    except (ValueError, RecursionError) as error:
        return Line(number, None, fault=f"line {number} is not JSON: {error}")


def line_of(number: int, record: object, fields: tuple[str, str, str]) -> Line:
    """What a record of a data set says. ``fields``: the names of question, answer and subject in it."""
    if not isinstance(record, dict):
        return Line(number, None, fault=f"line {number} is a JSON {_kind(record)}: expected an object")
    question_field, answer_field, subject_field = fields
    question, reference, subject = (record.get(field) for field in fields)
    fault = (
        _question_fault(record, question_field)
        or _reference_fault(reference, answer_field)
        or _subject_fault(subject, subject_field)
    )
    if fault:
        return Line(number, None, fault=f"line {number}: {fault}")
    return Line(number, question, None if reference is None else str(reference), subject)


def _question_fault(record: dict[str, Any], field: str) -> str | None:
    if field not in record:
        return f"no field {field!r}; it has {', '.join(map(repr, list(record)[:5])) or 'none'}"
    question = record[field]
    if not isinstance(question, str):
        return f"field {field!r} is a {_kind(question)}: expected text"
    if not question.strip():
        return f"field {field!r} is blank"
    return _text_fault(question, field)


def _reference_fault(reference: object, field: str) -> str | None:
    if isinstance(reference, str):
        return _text_fault(reference, field)
    if reference is None or (isinstance(reference, int | float) and not isinstance(reference, bool)):
        return None
    return f"field {field!r} is a {_kind(reference)}: expected text or a number"


def _subject_fault(subject: object, field: str) -> str | None:
    if subject is None:
        return None
    if not isinstance(subject, str):
        return f"field {field!r} is a {_kind(subject)}: expected text"
    return _text_fault(subject, field) if subject.strip() else f"field {field!r} is blank"


def _text_fault(text: str, field: str) -> str | None:
    return None if is_storable(text) else f"field {field!r} holds a NUL character or half a surrogate pair"


def _kind(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "truth value", type(None): "null"}
    return names.get(type(value), "number")
