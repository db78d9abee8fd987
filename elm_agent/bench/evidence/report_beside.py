"""A report's tables of methods beside one another: ours beside baselines, and ours among themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from elm_agent.bench.evidence.comparing import Comparison
from elm_agent.bench.evidence.figures import MethodFigures, TaskFigures
from elm_agent.bench.evidence.report_section import Section, Table, interval, number, p_value, seeds

P_TOO_SMALL = (
    "Over several seeds p is too small, for they ask the same questions; the interval, which draws whole questions,"
    " allows for that."
)
"""Stands at every table with a p over several seeds."""


def against(task: TaskFigures) -> Section | None:
    """Our methods beside each baseline; None without both."""
    found = [(method, one) for method in task.methods for one in method.against]
    if not found:
        return None
    costs = {method.label: method.tokens_per_question for method in task.methods}
    rows = tuple(
        (
            method.label,
            one.reference,
            paired(one),
            interval(one.difference),
            p_value(one.mcnemar.p),
            str(one.fixed),
            str(one.broken),
            f"{number(method.tokens_per_question, 0)} / {number(costs.get(one.reference), 0)}",
        )
        for method, one in found
    )
    return Section(
        title="Beside the baselines",
        words=(
            "The same comparison with each baseline in place of zero-shot, and what both generate for a question."
            f" {P_TOO_SMALL}",
        ),
        table=Table(
            columns=(
                "method",
                "beside",
                "pairs",
                "difference",
                "p",
                "only it right",
                "only the other right",
                "tokens",
            ),
            rows=rows,
        ),
        notes=tuple(note for method, one in found for note in said(method.label, one)),
    )


def among(task: TaskFigures) -> Section | None:
    """Our methods beside each other; None for fewer than two of them."""
    count = sum(len(method.among) for method in task.methods)
    if not count:
        return None
    named = {one.reference for method in task.methods for one in method.among}
    forms = [method for method in task.methods if method.among or method.label in named]
    return Section(
        title="The agent's forms against each other",
        words=(
            "Row less column: the difference in points on the questions and seeds that both have, with its interval;"
            f" p; how many pairs these are. Of {count} comparisons about one in twenty looks like a difference by"
            f" chance alone. {P_TOO_SMALL}",
        ),
        table=Table(
            columns=("form", *(f"less {number}" for number in range(1, len(forms)))),
            rows=tuple(
                (f"{number}: {form.label}", *_cells(form, [other.label for other in forms[:-1]]))
                for number, form in enumerate(forms, 1)
            ),
            roomy=True,
        ),
        notes=tuple(note for form in forms for one in form.among for note in said(form.label, one)),
    )


def _cells(form: MethodFigures, others: Sequence[str]) -> Iterator[str]:
    found = {one.reference: one for one in form.among}
    for other in others:
        if (one := found.get(other)) is None:
            yield ""
        else:
            yield f"{interval(one.difference)}; p {p_value(one.mcnemar.p)}; {one.pairs} pairs"


def paired(found: Comparison) -> str:
    """How many pairs, and of how many seeds: one seed alone is to be seen as such."""
    return f"{found.pairs}, {seeds(found.seeds)}"


def said(label: str, found: Comparison) -> Iterator[str]:
    """What could not be computed, and why."""
    notes = dict.fromkeys(note for note in (found.difference.note, found.mcnemar.note) if note is not None)
    if notes:
        yield f"{label} beside {found.reference}: {'; '.join(notes)}."
