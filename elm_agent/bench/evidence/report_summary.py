"""The opening of a report: what came out, in a few lines, and what the names of the methods mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from elm_agent.bench.evidence.figures import Cost, MethodFigures, TaskFigures
from elm_agent.bench.evidence.lines import ZERO_SHOT, is_agent, is_baseline
from elm_agent.bench.evidence.matrix import OfflineFigures
from elm_agent.bench.evidence.report_names import in_words, settings_told
from elm_agent.bench.evidence.report_section import (
    NONE,
    Part,
    Section,
    Table,
    counted,
    interval,
    number,
    percent,
    points,
)


def opening(tasks: Sequence[TaskFigures], offline: Sequence[OfflineFigures], methods: Sequence[str]) -> Part:
    """The first chapter. ``methods``: the names that the report uses."""
    shown = [task for task in tasks if task.task is None] or tasks
    lines = [
        line if len(shown) == 1 else f"{task.task}: {line[0].lower()}{line[1:]}"
        for task in shown
        for line in _task(task)
    ]
    lines += [line for one in offline for line in _bank(one)]
    return Part(title="In short", sections=(Section(title="What came out", notes=tuple(lines)), _names(methods)))


def _task(task: TaskFigures) -> Iterator[str]:
    for method in task.methods:
        if method.method == ZERO_SHOT:
            yield f"Zero-shot ({in_words(ZERO_SHOT)}): {counted(method.accuracy)} right; {_tokens(method)}."
    known = [method for method in task.methods if _gain(method) is not None]
    most = max(map(_finished, known), default=0)
    ours = [method for method in known if is_agent(method.method) and _finished(method) == most]
    others = [method for method in known if is_baseline(method.method) and _finished(method) == most]
    best, other = _best(ours), _best(others)
    if best is not None:
        yield f"{_chosen('form', 'of the agent', ours)} {_reached(best)}"
    if other is not None:
        yield f"{_chosen('baseline', '', others)} {_reached(other)}"
    for one in best.against if best is not None else ():
        if other is not None and one.reference == other.label:
            yield f"That form less that baseline: {interval(one.difference)} points on {one.pairs} pairs."
    if max(len(ours), len(others)) > 1:
        yield "A best one is chosen on the questions that it is measured on: its figures are an upper end."
    if less := [method.label for method in known if _finished(method) < most]:
        yield f"Not among them, as fewer of their seeds are finished: {', '.join(less)}."


def _finished(method: MethodFigures) -> int:
    return sum(one.finished for one in method.seeds)


def _gain(method: MethodFigures) -> float | None:
    """None where most answers have no zero-shot answer beside them: what is left says little."""
    found = method.versus
    return None if found is None or 2 * found.unpaired > method.asked else found.difference.estimate


def _best(methods: Iterable[MethodFigures]) -> MethodFigures | None:
    return max(methods, key=lambda method: _gain(method) or 0.0, default=None)


def _chosen(kind: str, of: str, methods: Sequence[MethodFigures]) -> str:
    words = f"The only {kind} {of}" if len(methods) == 1 else f"The best of {len(methods)} {kind}s {of}"
    return f"{words.rstrip()}:"


def _reached(method: MethodFigures) -> str:
    found = method.versus
    return (
        f"{method.label} ({in_words(method.method)}), {counted(method.accuracy)} right,"
        f" {interval(found.difference) if found else NONE} points over zero-shot;"
        f" harm {percent(found.harm) if found else NONE} (answers that it broke); {_tokens(method)}."
    )


def _tokens(method: MethodFigures) -> str:
    def each(cost: Cost) -> str:
        return number(cost.tokens / method.asked if method.asked else None, 0)

    learning = f" and {each(method.learning)} for learning" if method.learning.count else ""
    return f"{each(method.answering)} tokens a question for answering{learning}"


def _bank(found: OfflineFigures) -> Iterator[str]:
    if found.improving.value is None:
        return
    best = found.memories[0]
    yield (
        f"Memories of {found.method} ({in_words(found.method)}) by themselves on all of {found.task}:"
        f" {found.improving.part} of {found.improving.whole} are better than zero-shot; the best by"
        f" {points(best.gain)} points, {points(best.elsewhere)} without its own question. It breaks"
        f" {percent(best.negative_flips)} of what zero-shot has right."
    )


def _names(methods: Sequence[str]) -> Section:
    return Section(
        title="What the names mean",
        words=(
            "The agent answers each question plainly and with the nearest memory; where the two differ, a verifier"
            " chooses one. Then it learns a memory from the question. Offline there is nothing to choose: each memory"
            " answers every question by itself.",
        ),
        table=Table(columns=("method", "in words"), rows=tuple((method, in_words(method)) for method in methods)),
        notes=tuple(f"{name}: {description}." for name, description in settings_told(methods).items()),
    )
