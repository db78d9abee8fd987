"""The few counts that a command prints at its end, of each method and seed. Intervals and tests are the report's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from elm_agent.bench.evidence.contract import GenerationLine, Phase
from elm_agent.bench.evidence.lines import ZERO_SHOT, Key, candidate_right, key_of, verdicts

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
    """One method, seed and task. ``zero_shot``, ``fixed``, ``broken``: of the ``pairs``, where both were judged.

    The plain answer is that of the method ``zero_shot``, or the method's own plain candidate where that has none.
    """

    task: str
    part: str  # of a stream that changes on its way; "": all of it
    source: str | None
    method: str
    seed: int
    asked: int
    failed: int
    right: int
    pairs: int
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
        plain = "-" if self.zero_shot is None else f"{self.zero_shot / self.pairs:.1%}"
        task = f"{self.task}, {self.part}" if self.part else self.task
        return (
            *(task, self.source, self.method, self.seed, self.asked, self.failed, f"{self.right / judged:.1%}"),
            *(plain, self.fixed, self.broken, self.answer_tokens + self.learn_tokens),
        )


def counted(lines: Iterable[GenerationLine]) -> list[Counted]:
    """The counts of every method, in order of appearance; after them those of each part of a stream that changes."""
    groups: dict[tuple[str, str, str | None, str, int], list[GenerationLine]] = {}
    lines = list(lines)
    plain = verdicts(line for line in lines if line.method == ZERO_SHOT)
    for line in lines:
        for part in dict.fromkeys(("", line.part)):
            groups.setdefault((line.task, part, line.source, line.method, line.seed), []).append(line)
    whole_first = sorted(groups.items(), key=lambda pair: pair[0][1] != "")
    return [_counted(*name, group, plain) for name, group in whole_first]


def _counted(
    task: str,
    part: str,
    source: str | None,
    method: str,
    seed: int,
    lines: list[GenerationLine],
    plain: Mapping[Key, bool],
) -> Counted:
    answers = [line for line in lines if line.phase is Phase.ANSWER]
    learned = [line for line in lines if line.phase is Phase.LEARN]
    pairs = list(_pairs(answers, plain))
    return Counted(
        task=task,
        part=part,
        source=source,
        method=method,
        seed=seed,
        asked=len(answers),
        failed=sum(line.correct is None for line in answers),
        right=sum(bool(line.correct) for line in answers),
        pairs=len(pairs),
        zero_shot=sum(first for first, _ in pairs) if pairs else None,
        fixed=sum(right and not first for first, right in pairs),
        broken=sum(first and not right for first, right in pairs),
        answer_tokens=sum(line.tokens for line in answers),
        learn_tokens=sum(line.tokens for line in learned),
        answer_seconds=round(sum(line.seconds for line in answers), 2),
        learn_seconds=round(sum(line.seconds for line in learned), 2),
        learn_failed=sum(line.failure is not None for line in learned),
    )


def _pairs(answers: Iterable[GenerationLine], plain: Mapping[Key, bool]) -> Iterator[tuple[bool, bool]]:
    """(plain answer right, returned answer right)."""
    for line in answers:
        first = plain.get(key_of(line), candidate_right(line, ZERO_SHOT))
        if line.correct is not None and first is not None:
            yield first, line.correct
