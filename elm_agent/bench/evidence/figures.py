"""Figures of a run, from its stored lines alone. Pure functions: lines in, frozen dataclasses out.

Knows nothing of files, models or pages. Failures are counted apart and are in no accuracy; what cannot be computed is
None, with a note that says why. How each figure is defined stands in docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from elm_agent.bench.evidence.comparing import Comparison, beside, compare
from elm_agent.bench.evidence.contract import SHARED, GenerationLine, Phase
from elm_agent.bench.evidence.lines import (
    ZERO_SHOT,
    Items,
    Key,
    Lines,
    Share,
    accuracy,
    candidate_right,
    grouped,
    is_agent,
    is_baseline,
    judged,
    key_of,
    label_of,
    question_of,
    verdicts,
)
from elm_agent.bench.evidence.routing import Retrieval, Routing, retrieval, routing


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Sums over ``count`` lines; generated and read tokens, seconds."""

    count: int
    tokens: int
    prompt_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedFigures:
    seed: int
    asked: int
    questions: int  # that there are to be asked
    shared: bool  # every answer is that of another seed, as the method draws nothing
    accuracy: Share
    failures: int
    versus: Comparison | None

    @property
    def finished(self) -> bool:
        return self.asked >= self.questions


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyFigures:
    family: str
    accuracy: Share
    versus: Comparison | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFigures:
    """A part of a stream that changes on its way."""

    part: str
    accuracy: Share
    failures: int
    versus: Comparison | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodFigures:
    """One method on one task. ``versus``: beside zero-shot; None for zero-shot itself."""

    method: str
    source: str | None  # the set that memories come from, where it is another one
    accuracy: Share  # right, of the judged answers
    asked: int
    no_answer: int  # texts without an answer: wrong, and no failure
    failures: int  # of answering
    learn_failures: int
    versus: Comparison | None
    against: tuple[Comparison, ...] = ()  # one of ours beside each baseline
    among: tuple[Comparison, ...] = ()  # one of ours beside each other one of ours that stands before it
    own_reference: int  # pairs whose reference is the method's own plain candidate, as zero-shot was not run
    reference_differs: int  # questions whose own plain candidate was judged otherwise than the method zero_shot
    seeds: tuple[SeedFigures, ...]
    families: tuple[FamilyFigures, ...]
    parts: tuple[PartFigures, ...]  # in order; none where the stream does not change
    routing: Routing | None
    answering: Cost
    learning: Cost
    states: Mapping[str, int]  # of what was learned, where there are states
    retrieval: Retrieval | None

    @property
    def label(self) -> str:
        return label_of(self.method, self.source)

    @property
    def tokens_per_question(self) -> float | None:
        """Generated tokens, those of learning included."""
        return (self.answering.tokens + self.learning.tokens) / self.asked if self.asked else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFigures:
    """All methods on one task; ``task`` is None for all tasks taken together."""

    task: str | None
    questions: int
    methods: tuple[MethodFigures, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One line that failed, and where."""

    phase: str
    method: str
    seed: int
    task: str
    item_id: str
    learner: str | None
    reason: str


def failures(lines: Lines) -> tuple[Failure, ...]:
    """Every recorded failure, in order."""
    return tuple(
        Failure(
            phase=line.phase,
            method=line.method,
            seed=line.seed,
            task=line.task,
            item_id=line.item_id,
            learner=line.learner,
            reason=line.failure,
        )
        for line in lines
        if line.failure is not None
    )


def task_figures(
    lines: Lines, items: Items, *, told: Callable[[str], None] = lambda _: None
) -> tuple[TaskFigures, ...]:
    """Every method on each task, and on all tasks together when there are several and each has its own memories.

    Lines of the offline matrix (with a ``learner``) are left to ``offline``. ``told`` hears the name of
    each method that is done.
    """
    learned = [line for line in lines if line.phase is Phase.LEARN]
    answers = [line for line in lines if line.phase is Phase.ANSWER and line.learner is None]
    tasks: list[str | None] = list(dict.fromkeys(line.task for line in answers))
    if len(tasks) > 1 and all(line.source in (None, line.task) for line in answers):
        tasks.append(None)
    return tuple(
        _section(task, [line for line in answers if task in (None, line.task)], learned, items, told)
        for task in tasks
    )


# --- one section ------------------------------------------------------------------------------------------------


def _section(
    task: str | None, answers: Lines, learned: Lines, items: Items, told: Callable[[str], None]
) -> TaskFigures:
    groups: dict[tuple[str, str | None], list[GenerationLine]] = defaultdict(list)
    for line in answers:
        groups[line.method, line.source if line.source != line.task else None].append(line)
    known = {group: verdicts(part) for group, part in groups.items()}
    zero_shot = known.get((ZERO_SHOT, None), {})
    asked = {line.task for line in answers}
    whole = sum(of in asked for of, _ in items)
    methods = []
    for (name, source), part in groups.items():
        sources = {line.source for line in part}
        learning = [line for line in learned if line.method == name and line.task in sources]
        found = _method(part, learning, zero_shot, items, source, whole)
        methods.append(_held_against(found, part, known, items) if is_agent(name) else found)
        told(name)
    questions = {question_of(line, items) for line in answers}
    return TaskFigures(task=task, questions=len(questions), methods=tuple(methods))


def _held_against(
    method: MethodFigures, answers: Lines, known: Mapping[tuple[str, str | None], Mapping[Key, bool]], items: Items
) -> MethodFigures:
    """One of ours with the baselines, and with those of ours that stand before it: each two are compared once."""
    before = list(known)[: list(known).index((method.method, method.source))]
    ours = [group for group in before if is_agent(group[0]) and group[1] == method.source]
    others = [group for group in known if is_baseline(group[0]) and group[1] in (None, method.source)]
    return replace(
        method,
        against=beside(answers, {label_of(*group): known[group] for group in others}, items),
        among=beside(answers, {label_of(*group): known[group] for group in ours}, items),
    )


def _method(
    answers: Lines,
    learned: Lines,
    zero_shot: Mapping[Key, bool],
    items: Items,
    source: str | None,
    whole: int,
) -> MethodFigures:
    name = answers[0].method
    own = _own_reference(answers)
    reference = None if name == ZERO_SHOT else {**own, **zero_shot}
    right = judged(answers)

    def versus(part: Lines) -> Comparison | None:
        return None if reference is None else compare(part, reference, ZERO_SHOT, items)

    return MethodFigures(
        method=name,
        source=source,
        accuracy=accuracy(answers),
        asked=len(answers),
        no_answer=sum(line.answer is None for line in right),
        failures=sum(line.failure is not None for line in answers),
        learn_failures=sum(line.failure is not None for line in learned),
        versus=versus(answers),
        own_reference=0
        if reference is None
        else sum(key_of(line) in own.keys() - zero_shot.keys() for line in right),
        reference_differs=sum(own[key] != zero_shot[key] for key in own.keys() & zero_shot.keys()),
        seeds=tuple(
            SeedFigures(
                seed=seed,
                asked=len(part),
                questions=whole,
                shared=all(SHARED in line.detail for line in part),
                accuracy=accuracy(part),
                failures=_failed(part),
                versus=versus(part),
            )
            for seed, part in sorted(grouped(answers, lambda line: line.seed).items())
        ),
        families=tuple(
            FamilyFigures(family=family, accuracy=accuracy(part), versus=versus(part))
            for family, part in sorted(grouped(answers, lambda line: line.family).items())
        ),
        parts=tuple(
            PartFigures(part=part, accuracy=accuracy(lines), failures=_failed(lines), versus=versus(lines))
            for part, lines in sorted(grouped(answers, lambda line: line.part).items(), key=_begins)
            if part
        ),
        routing=routing(answers),
        answering=_cost(answers),
        learning=_cost(learned),
        states=dict(Counter(line.state for line in learned if line.state is not None)),
        retrieval=retrieval(answers, learned, reference or {}),
    )


def _own_reference(answers: Lines) -> dict[Key, bool]:
    """What each line's own plain candidate was, for runs without the method zero_shot."""
    found = {key_of(line): candidate_right(line, ZERO_SHOT) for line in answers}
    return {key: right for key, right in found.items() if right is not None}


def _begins(part: tuple[str, Lines]) -> int:
    return min(line.position for line in part[1])


def _failed(lines: Lines) -> int:
    return sum(line.failure is not None for line in lines)


def _cost(lines: Lines) -> Cost:
    return Cost(
        count=len(lines),
        tokens=sum(line.tokens for line in lines),
        prompt_tokens=sum(line.prompt_tokens for line in lines),
        seconds=math.fsum(line.seconds for line in lines),
    )
