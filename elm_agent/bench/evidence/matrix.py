"""Figures of the offline protocol: every memory answers every question. Pure functions of lines.

Knows nothing of files or pages. The best memory is chosen on the very questions that it is measured on, as in the
paper, so its figure is an upper end; ``elsewhere`` leaves out the question that a memory was made from.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elm_agent.bench.evidence.contract import GenerationLine, Phase
from elm_agent.bench.evidence.lines import (
    ZERO_SHOT,
    Items,
    Key,
    Lines,
    Share,
    accuracy,
    candidate_right,
    grouped,
    judged,
    key_of,
    verdicts,
)
from elm_agent.bench.stream_run import judged_outcome
from elm_agent.records import UseOutcome

THRESHOLDS = (0, 1, 2, 3, 5, 10, 15, 20, 30)
"""Percentage points of gain."""

TOP = 5
"""How many of the best memories negative flips are averaged over (the paper's number)."""

Cells = Mapping[str, UseOutcome]
"""What a memory did to each question, by item id; questions without a judged pair are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGain:
    """One memory on all questions, beside zero-shot. Shares, not percent."""

    seed: int
    learner: str
    accuracy: Share
    gain: float | None  # right answers more than zero-shot, of all pairs
    elsewhere: float | None  # the same without the memory's own question
    negative_flips: Share  # broken, of those that zero-shot has right
    oracle: Share  # it or zero-shot right
    fixed: int
    broken: int
    failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineSeed:
    """The bank of one seed. ``iou``: of what the two best memories fix; None where ``note`` says why."""

    seed: int
    zero_shot: Share
    best: MemoryGain | None
    bank_oracle: Share  # any memory or zero-shot right
    negative_flips: float | None  # mean over the best ``TOP``
    iou: float | None
    note: str | None
    matrix: Mapping[str, Cells]  # by learner


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineFigures:
    """The memories of one method on one task. ``curve``: share of memories with more gain than each threshold."""

    task: str
    method: str
    memories: tuple[MemoryGain, ...]  # the best first
    unmeasured: int  # without a single pair: not in any share
    improving: Share
    curve: Mapping[int, float]
    seeds: tuple[OfflineSeed, ...]


def offline_figures(lines: Lines, items: Items) -> tuple[OfflineFigures, ...]:
    """Every method with a matrix on each task; empty for the other protocols."""
    answers = [line for line in lines if line.phase is Phase.ANSWER]
    plain = verdicts(line for line in answers if line.method == ZERO_SHOT and line.learner is None)
    own = {key_of(line): right for line in answers if (right := candidate_right(line, ZERO_SHOT)) is not None}
    groups = grouped([line for line in answers if line.learner is not None], lambda line: (line.task, line.method))
    return tuple(_method(part, {**own, **plain}, items) for part in groups.values())


def _method(answers: Lines, reference: Mapping[Key, bool], items: Items) -> OfflineFigures:
    parts = grouped(answers, lambda line: (line.seed, line.learner or ""))
    memories = [_memory(part, reference, items) for part in parts.values()]
    memories.sort(key=lambda one: (-(one.gain if one.gain is not None else -2.0), one.seed, one.learner))
    gains = [one.gain for one in memories if one.gain is not None]
    above = {points: sum(gain * 100 > points + 1e-9 for gain in gains) for points in THRESHOLDS}
    seeds = grouped(answers, lambda line: line.seed)
    return OfflineFigures(
        task=answers[0].task,
        method=answers[0].method,
        memories=tuple(memories),
        unmeasured=len(memories) - len(gains),
        improving=Share.of(above[0], len(gains)),
        curve={points: count / len(gains) for points, count in above.items()} if gains else {},
        seeds=tuple(
            _seed(seed, part, [one for one in memories if one.seed == seed], reference)
            for seed, part in sorted(seeds.items())
        ),
    )


def _memory(part: Lines, reference: Mapping[Key, bool], items: Items) -> MemoryGain:
    first = part[0]
    cells = _cells(part, reference)
    counts = list(cells.values())
    fixed, broken = counts.count(UseOutcome.FIXED), counts.count(UseOutcome.BROKEN)
    kept = counts.count(UseOutcome.BOTH_RIGHT)
    itself = _own_questions(part, first.learner or "", items)
    return MemoryGain(
        seed=first.seed,
        learner=first.learner or "",
        accuracy=accuracy(part),
        gain=_gain(counts),
        elsewhere=_gain([cell for item, cell in cells.items() if item not in itself]),
        negative_flips=Share.of(broken, broken + kept),
        oracle=Share.of(fixed + broken + kept, len(counts)),
        fixed=fixed,
        broken=broken,
        failures=sum(line.failure is not None for line in part),
    )


def _seed(seed: int, answers: Lines, memories: Sequence[MemoryGain], reference: Mapping[Key, bool]) -> OfflineSeed:
    matrix = {
        learner: _cells(part, reference)
        for learner, part in grouped(answers, lambda line: line.learner or "").items()
    }
    best = [one for one in memories if one.gain is not None]
    flips = [one.negative_flips.value for one in best[:TOP] if one.negative_flips.value is not None]
    iou, note = _overlap([_fixed(matrix[one.learner]) for one in best[:2]])
    keys = {key_of(line) for line in answers if key_of(line) in reference}
    solved = {item for cells in matrix.values() for item, cell in cells.items() if cell is not UseOutcome.BOTH_WRONG}
    return OfflineSeed(
        seed=seed,
        zero_shot=Share.of(sum(reference[key] for key in keys), len(keys)),
        best=best[0] if best else None,
        bank_oracle=Share.of(sum(reference[key] or key[2] in solved for key in keys), len(keys)),
        negative_flips=statistics.fmean(flips) if flips else None,
        iou=iou,
        note=note,
        matrix=matrix,
    )


def _cells(part: Lines, reference: Mapping[Key, bool]) -> dict[str, UseOutcome]:
    cells = {}
    for line in judged(part):
        if (plain := reference.get(key_of(line))) is not None:
            cells[line.item_id] = judged_outcome(plain, bool(line.correct))
    return cells


def _gain(cells: Sequence[UseOutcome]) -> float | None:
    if not cells:
        return None
    return (cells.count(UseOutcome.FIXED) - cells.count(UseOutcome.BROKEN)) / len(cells)


def _own_questions(part: Lines, learner: str, items: Items) -> set[str]:
    """Ids of the items that ask what the memory was made from."""
    source = part[0].source or part[0].task
    learned = items.get((source, learner))
    own = learned.digest if learned is not None else None

    def is_own(line: GenerationLine) -> bool:
        item = items.get((line.task, line.item_id))
        return (line.item_id == learner and line.task == source) or (item is not None and item.digest == own)

    return {line.item_id for line in part if is_own(line)}


def _fixed(cells: Cells) -> set[str]:
    return {item for item, cell in cells.items() if cell is UseOutcome.FIXED}


def _overlap(fixed: Sequence[set[str]]) -> tuple[float | None, str | None]:
    if len(fixed) < 2:
        return None, "fewer than two memories: no overlap"
    first, second = fixed
    if not first | second:
        return None, "the two best memories fix nothing: no overlap"
    return len(first & second) / len(first | second), None
