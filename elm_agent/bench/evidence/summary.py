"""The few counts that a command prints at its end, of each method and seed. Intervals and tests are the report's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from elm_agent.bench.evidence.contract import GenerationLine, Phase

COLUMNS = (
    "task",
    "learned from",
    "method",
    "seed",
    "asked",
    "failed",
    "right",
    "zero-shot",
    "fixed",
    "broken",
    "tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One method, seed and task. ``zero_shot``, ``fixed``, ``broken``: where the plain answer was given too."""

    task: str
    part: str  # of a stream that changes on its way; "": all of it
    source: str | None
    method: str
    seed: int
    asked: int
    failed: int
    right: int
    zero_shot: int | None
    fixed: int
    broken: int
    answer_tokens: int
    learn_tokens: int
    answer_seconds: float
    learn_seconds: float
    learn_failed: int

    @property
    def row(self) -> tuple[object, ...]:
        """In the order of ``COLUMNS``."""
        judged = max(1, self.asked - self.failed)
        plain = "-" if self.zero_shot is None else f"{self.zero_shot / judged:.1%}"
        task = f"{self.task}, {self.part}" if self.part else self.task
        return (
            *(task, self.source, self.method, self.seed, self.asked, self.failed, f"{self.right / judged:.1%}"),
            *(plain, self.fixed, self.broken, self.answer_tokens + self.learn_tokens),
        )


def counted(lines: Iterable[GenerationLine]) -> list[Counted]:
    """The counts of every method, in order of appearance; after them those of each part of a stream that changes."""
    groups: dict[tuple[str, str, str | None, str, int], list[GenerationLine]] = {}
    for line in lines:
        for part in dict.fromkeys(("", line.part)):
            groups.setdefault((line.task, part, line.source, line.method, line.seed), []).append(line)
    return [_counted(*name, group) for name, group in sorted(groups.items(), key=lambda pair: pair[0][1] != "")]


def _counted(
    task: str, part: str, source: str | None, method: str, seed: int, lines: list[GenerationLine]
) -> Counted:
    answers = [line for line in lines if line.phase is Phase.ANSWER]
    learned = [line for line in lines if line.phase is Phase.LEARN]
    pairs = list(_pairs(answers))
    return Counted(
        task=task,
        part=part,
        source=source,
        method=method,
        seed=seed,
        asked=len(answers),
        failed=sum(line.correct is None for line in answers),
        right=sum(bool(line.correct) for line in answers),
        zero_shot=sum(plain for plain, _ in pairs) if pairs else None,
        fixed=sum(right and not plain for plain, right in pairs),
        broken=sum(plain and not right for plain, right in pairs),
        answer_tokens=sum(line.tokens for line in answers),
        learn_tokens=sum(line.tokens for line in learned),
        answer_seconds=round(sum(line.seconds for line in answers), 2),
        learn_seconds=round(sum(line.seconds for line in learned), 2),
        learn_failed=sum(line.failure is not None for line in learned),
    )


def _pairs(answers: Iterable[GenerationLine]) -> Iterator[tuple[bool, bool]]:
    """(plain answer right, returned answer right)."""
    for line in answers:
        plain = line.candidate("zero_shot")
        if line.correct is not None and plain is not None and plain.correct is not None:
            yield plain.correct, line.correct
