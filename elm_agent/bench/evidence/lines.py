"""What stored lines say: right or wrong, in which pair, of which question. Pure functions of lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from elm_agent.bench.evidence.contract import GenerationLine, Item, Phase

ZERO_SHOT, MEMORY = "zero_shot", "memory"
"""Roles of candidates; the first is the reference method too."""

Key = tuple[str, int, str]
"""Task, seed and item: what makes two answers a pair."""

K = TypeVar("K")
Items = Mapping[tuple[str, str], Item]
Lines = Sequence[GenerationLine]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """So many of so many; ``value`` is None when there was none to count."""

    part: int
    whole: int
    value: float | None

    @classmethod
    def of(cls, part: int, whole: int) -> Share:
        return cls(part=part, whole=whole, value=part / whole if whole else None)


def judged(lines: Iterable[GenerationLine]) -> list[GenerationLine]:
    """The answers that are known to be right or wrong."""
    return [
        line for line in lines if line.phase is Phase.ANSWER and line.failure is None and line.correct is not None
    ]


def key_of(line: GenerationLine) -> Key:
    return line.task, line.seed, line.item_id


def verdicts(lines: Iterable[GenerationLine]) -> dict[Key, bool]:
    """Right or wrong by task, seed and item."""
    return {key_of(line): bool(line.correct) for line in judged(lines)}


def candidate_right(line: GenerationLine, role: str) -> bool | None:
    """Whether a line's candidate is right; no answer is wrong; None when there is none or it was not judged."""
    candidate = line.candidate(role)
    if candidate is None or line.failure is not None:
        return None
    return False if candidate.answer is None else candidate.correct


def question_of(line: GenerationLine, items: Items) -> tuple[str, str]:
    """What stands for a question: items of the same wording are one, as are all its seeds."""
    item = items.get((line.task, line.item_id))
    return (line.task, line.item_id) if item is None else ("", item.digest)


def accuracy(answers: Lines) -> Share:
    known = judged(answers)
    return Share.of(sum(bool(line.correct) for line in known), len(known))


def grouped(lines: Lines, key: Callable[[GenerationLine], K]) -> dict[K, list[GenerationLine]]:
    groups: dict[K, list[GenerationLine]] = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return groups


def label_of(method: str, source: str | None) -> str:
    """What a report calls a method; ``source``: the other set that its memories come from."""
    return method if source is None else f"{method} from {source}"


def is_agent(method: str) -> bool:
    """Whether a method is one of ours, which is held against every baseline."""
    return method.split(":")[0].split("_")[0] == "elm"


def is_baseline(method: str) -> bool:
    """Whether a method is one that an agent should be ahead of; what sees the answers is not."""
    return not is_agent(method) and method != ZERO_SHOT and not method.startswith(("oracle", "grpo"))
