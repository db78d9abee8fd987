"""Rows of a data set become items; what cannot is a fault, and equal questions are told. Knows no file or hub."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from elm_agent.bench.evidence.contract import Fault, Item, TaskSet
from elm_agent.bench.streams import Line, line_of
from elm_agent.errors import InputError
from elm_agent.tasks.numerals import MAX_ANSWER, read_number

Reader = Callable[[str], str]
"""The reference in an answer field. Raises ``ValueError`` with the reason when there is none."""


def expression(text: str) -> str:
    """Any answer that can be compared: not blank, not a solution, its braces closed."""
    text = text.strip()
    if not text:
        raise ValueError("it is blank")
    if len(text) > MAX_ANSWER:
        raise ValueError(f"it has {len(text)} characters: expected an answer of at most {MAX_ANSWER}")
    if text.count("{") - text.count("\\{") != text.count("}") - text.count("\\}"):
        raise ValueError(f"its braces do not match: {text[:60]!r}")
    return text


def number(text: str) -> str:
    """One number."""
    text = text.strip()
    if read_number(text) is None:
        raise ValueError(f"it is no number: {text[:60]!r}")
    return text


def after_hashes(text: str) -> str:
    """The number after ``####``, as in GSM8K."""
    _, hashes, last = text.rpartition("####")
    if not hashes:
        raise ValueError("it has no '####' before its answer")
    return number(last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """Where question and answer stand in a row.

    ``question``: names of which the first that a row has counts; ``joined``: fields that make a question together.
    """

    question: tuple[str, ...] = ("question",)
    answer: str = "answer"
    family: str | None = None
    joined: tuple[str, ...] = ()
    read: Reader = field(default=expression)

    def line(self, number: int, row: object) -> tuple[Line, str | None]:
        """What the row says, and its family where it names one."""
        if isinstance(row, Line):
            return row, None
        if not isinstance(row, Mapping):
            return line_of(number, row, (self.question[0], self.answer, "")), None
        family = row.get(self.family) if self.family else None
        named = family if isinstance(family, str) and family.strip() else None
        if self.joined and all(isinstance(row.get(name), str) for name in self.joined):
            row = {**row, self.question[0]: " ".join(row[name].strip() for name in self.joined)}
        question = next((name for name in self.question if name in row), self.question[0])
        return line_of(number, row, (question, self.answer, "")), named


def set_of(
    name: str, kind: str, lines: Iterable[tuple[Line, str | None]], *, read: Reader, limit: int | None
) -> TaskSet:
    """The task set of what was read: each line with its family. ``limit``: most items; faults are told of all lines.

    Raises:
        InputError: no line makes an item.
    """
    items: list[Item] = []
    faults: list[Fault] = []
    for line, family in lines:
        where = f"line {line.number}"
        if line.question is None:
            faults.append(Fault(where, (line.fault or "no question").removeprefix(f"{where}").lstrip(": ")))
            continue
        if line.reference is None:
            faults.append(Fault(where, "the answer field is missing or null"))
            continue
        try:
            answer = read(line.reference)
        except ValueError as error:
            faults.append(Fault(where, f"the answer cannot be used: {error}"))
            continue
        items.append(
            Item(id=f"{line.number:05d}", question=line.question, answer=answer, family=family or name, split="test")
        )
    if not items:
        reason = f"{faults[0].where}: {faults[0].reason}" if faults else "it is empty"
        raise InputError(f"task set {name!r} has no usable question ({len(faults)} rows cannot be used; {reason})")
    return finished(TaskSet(name=name, kind=kind, items=tuple(items[:limit]), faults=tuple(faults)))


def finished(made: TaskSet) -> TaskSet:
    """The same set with its equal questions named."""
    by_digest: dict[str, list[str]] = defaultdict(list)
    for item in made.items:
        by_digest[item.digest].append(item.id)
    equal = tuple(tuple(ids) for ids in by_digest.values() if len(ids) > 1)
    return TaskSet(
        name=made.name, kind=made.kind, items=made.items, faults=made.faults, duplicates=equal, judge=made.judge
    )
