"""Votes without labels: which answers mean the same, and which is the most common (TTRL, METHOD section 1b).

Pure functions over answers and an equivalence. A comparison that fails is kept as a failure of the sample that
could not be judged; it never becomes a reward of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from elm_agent.errors import TaskError

Equivalent = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Grouping:
    """Answers by meaning.

    ``classes``: indices into the answers, each class in order, classes by first appearance.
    ``undecided``: pairs (earlier class, later class) whose comparison failed, with the reason.
    """

    classes: tuple[tuple[int, ...], ...]
    undecided: Mapping[tuple[int, int], str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Majority:
    """The outcome of a vote of G answers.

    ``answer``: the first-written member of the largest class, None when nobody answered.
    ``members``: its indices. ``share``: len(members) / G.
    ``rewards_G``: 1.0 for a member, 0.0 for any other, None where the comparison with ``answer`` failed.
    ``failures``: index -> reason, for exactly the rewards that are None.
    """

    answer: str | None
    members: tuple[int, ...]
    share: float
    rewards_G: tuple[float | None, ...]
    failures: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))


def group_answers(answers: Sequence[str | None], equivalent: Equivalent) -> Grouping:
    """Group equivalent answers; None joins no class. Each answer is compared with the first of each class."""
    classes: list[list[int]] = []
    undecided: dict[tuple[int, int], str] = {}
    seen: dict[str, int] = {}  # equal strings need no comparison
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        if answer not in seen:
            seen[answer] = _class_of(answer, answers, classes, undecided, equivalent)
        if seen[answer] == len(classes):
            classes.append([])
        classes[seen[answer]].append(index)
    return Grouping(tuple(tuple(members) for members in classes), MappingProxyType(undecided))


def _class_of(
    answer: str,
    answers: Sequence[str | None],
    classes: list[list[int]],
    undecided: dict[tuple[int, int], str],
    equivalent: Equivalent,
) -> int:
    """Position of the class that ``answer`` belongs to; ``len(classes)`` when it opens one."""
    failed: dict[tuple[int, int], str] = {}
    for position, members in enumerate(classes):
        first = answers[members[0]]
        assert first is not None
        try:
            if equivalent(first, answer):
                return position
        except TaskError as error:
            failed[position, len(classes)] = str(error)
    undecided.update(failed)
    return len(classes)


def majority(answers: Sequence[str | None], equivalent: Equivalent) -> Majority:
    """The most common answer (ties: the class that appeared first) and the reward of each [METHOD 1b, Eq. 2]."""
    grouping = group_answers(answers, equivalent)
    if not grouping.classes:
        return Majority(None, (), 0.0, (0.0,) * len(answers))
    winner = max(range(len(grouping.classes)), key=lambda position: len(grouping.classes[position]))
    members = grouping.classes[winner]
    failures = _failures(grouping, winner)
    rewards = [1.0 if index in members else None if index in failures else 0.0 for index in range(len(answers))]
    return Majority(
        answers[members[0]], members, len(members) / len(answers), tuple(rewards), MappingProxyType(failures)
    )


def _failures(grouping: Grouping, winner: int) -> dict[int, str]:
    """Members of every class that could not be compared with the winning one."""
    return {
        index: reason
        for pair, reason in grouping.undecided.items()
        if winner in pair
        for index in grouping.classes[pair[0] + pair[1] - winner]
    }
