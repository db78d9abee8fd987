"""A report's tables of memories: routing, retrieval, and each memory on all questions. Figures in, sections out."""

from __future__ import annotations

from collections.abc import Iterable

from elm_agent.bench.evidence.figures import TaskFigures
from elm_agent.bench.evidence.matrix import TOP, OfflineFigures
from elm_agent.bench.evidence.paired import Concentration
from elm_agent.bench.evidence.report_section import (
    NONE,
    Section,
    Table,
    counted,
    number,
    percent,
    points,
)

MOST_USED = 5
"""Rows of the table of retrieved memories, for each method."""


def routing(task: TaskFigures) -> Section | None:
    """What the choice between two answers did; None when no method chooses."""
    rows, notes = [], []
    for method in task.methods:
        if (found := method.routing) is None:
            continue
        rows.append(
            (
                method.label,
                counted(found.agreed),
                str(found.memory_right),
                str(found.zero_shot_right),
                str(found.both_wrong),
                str(found.both_right),
                counted(found.verifier),
                ", ".join(f"{route} {count}" for route, count in found.routes.items()),
            )
        )
        if found.verifier.value is None:
            notes.append(
                f"{method.label}: no disagreement had just one right answer, so its verifier was not tested."
            )
        if found.unjudged:
            notes.append(f"{method.label}: {found.unjudged} disagreements have a candidate that was not judged.")
    if not rows:
        return None
    return Section(
        title="Routing",
        words=(
            "Agreed: right ones among the questions on which both answers agreed. Where they differed: which was"
            " right. Verifier: how often the right one was chosen where just one was.",
        ),
        table=Table(
            columns=(
                "method",
                "agreed, right",
                "memory right",
                "zero-shot right",
                "both wrong",
                "both right",
                "verifier",
                "routes",
            ),
            rows=tuple(rows),
        ),
        notes=tuple(notes),
    )


def memories(task: TaskFigures) -> Section | None:
    """How often memories were retrieved, and how unevenly; None when no method has any."""
    rows, notes = [], []
    for method in task.methods:
        if (found := method.retrieval) is None:
            continue
        states = ", ".join(f"{state} {count}" for state, count in method.states.items())
        rows += [(method.label, str(seed), *_uneven(one)) for seed, one in found.concentration.items()]
        for note in dict.fromkeys(one.note for one in found.concentration.values() if one.note is not None):
            those = ", ".join(str(seed) for seed, one in found.concentration.items() if one.note == note)
            notes.append(f"{method.label}, seed {those}: {note}.")
        notes.append(
            f"{method.label}: {found.memories} memories were kept{f' ({states})' if states else ''},"
            f" {found.retrievable} of them could be retrieved; a memory was retrieved for {counted(found.retrieved)}"
            " of the questions."
        )
    if not rows:
        return None
    return Section(
        title="Memories and their retrieval",
        words=(
            "Top: share of all retrievals that went to the most retrieved memory, and to the first three. Gini: 0"
            " when all memories that could be retrieved are so alike, near 1 when one takes all. Entropy: 1 and 0 for"
            " the same.",
        ),
        table=Table(
            columns=(
                "method",
                "seed",
                "retrievals",
                "memories used",
                "retrievable",
                "top",
                "top 3",
                "Gini",
                "entropy",
            ),
            rows=tuple(rows),
        ),
        notes=tuple(notes),
    )


def _uneven(one: Concentration) -> tuple[str, ...]:
    return (
        str(one.total),
        str(one.kinds),
        str(one.pool),
        percent(one.top_share),
        percent(one.top3_share),
        number(one.gini, 2),
        number(one.entropy, 2),
    )


def most_used(task: TaskFigures) -> Section | None:
    """The memories that were retrieved most, with what they fixed and broke."""
    rows = tuple(
        (
            method.label,
            str(use.seed),
            use.memory_id,
            use.memory_item or NONE,
            str(use.uses),
            str(use.fixed),
            str(use.broken),
        )
        for method in task.methods
        if method.retrieval is not None
        for use in method.retrieval.uses[:MOST_USED]
    )
    if not rows:
        return None
    columns = ("method", "seed", "memory", "made from", "retrieved", "fixed", "broken")
    words = "Beside zero-shot on the questions for which it was retrieved."
    return Section(title="Most retrieved memories", words=(words,), table=Table(columns=columns, rows=rows))


# --- the offline protocol -----------------------------------------------------------------------------------------


def offline(found: Iterable[OfflineFigures]) -> Section | None:
    """The bank of each method and seed; None without a matrix."""
    rows, notes = [], []
    for one in found:
        for seed in one.seeds:
            best = seed.best
            rows.append(
                (
                    one.task,
                    one.method,
                    str(seed.seed),
                    str(sum(memory.seed == seed.seed and memory.gain is not None for memory in one.memories)),
                    percent(seed.zero_shot),
                    NONE if best is None else f"{percent(best.accuracy)} ({points(best.gain)})",
                    NONE if best is None else points(best.elsewhere),
                    NONE if best is None else percent(best.oracle),
                    percent(seed.bank_oracle),
                    percent(seed.negative_flips),
                    number(seed.iou, 2),
                )
            )
            if seed.note is not None:
                notes.append(f"{one.method}, seed {seed.seed}: {seed.note}.")
        notes.append(f"{one.method} on {one.task}: {counted(one.improving)} of its memories improve on zero-shot.")
        if one.unmeasured:
            notes.append(f"{one.method} on {one.task}: {one.unmeasured} memories have no judged pair.")
    if not rows:
        return None
    return Section(
        title="Each memory on all questions",
        words=(
            "The best memory is chosen on the questions that it is measured on: an upper end, and the higher the more"
            " memories there are. Elsewhere: its gain in points without the question that it was made from. Oracle:"
            " it or zero-shot right; of the bank: any memory or zero-shot right. Negative flips: broken, of those"
            f" zero-shot has right, mean of the best {TOP}. IoU: of what the two best fix.",
        ),
        table=Table(
            columns=(
                "task",
                "method",
                "seed",
                "memories",
                "zero-shot",
                "best memory",
                "elsewhere",
                "oracle of the best",
                "oracle of the bank",
                "negative flips",
                "IoU",
            ),
            rows=tuple(rows),
        ),
        notes=tuple(notes),
    )


def gains(found: Iterable[OfflineFigures]) -> Section | None:
    """Share of memories above each threshold."""
    shown = [one for one in found if one.curve]
    if not shown:
        return None
    limits = list(shown[0].curve)
    return Section(
        title="Share of memories that gain more than so many points",
        table=Table(
            columns=("task", "method", "memories", *(f"> {limit}" for limit in limits)),
            rows=tuple(
                (one.task, one.method, str(one.improving.whole), *map(percent, one.curve.values())) for one in shown
            ),
        ),
    )
