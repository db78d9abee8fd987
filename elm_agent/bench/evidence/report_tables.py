"""A report's tables of methods: what they reach, beside what, at what cost. Figures in, sections out."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from elm_agent.bench.evidence.comparing import Comparison
from elm_agent.bench.evidence.figures import MethodFigures, SeedFigures, TaskFigures
from elm_agent.bench.evidence.lines import Share
from elm_agent.bench.evidence.report_beside import P_TOO_SMALL, paired, said
from elm_agent.bench.evidence.report_section import (
    NONE,
    Section,
    Table,
    counted,
    interval,
    number,
    p_value,
    percent,
    points,
)


def results(task: TaskFigures) -> Section:
    """The main table."""
    level = next((100 * m.versus.difference.level for m in task.methods if m.versus), 95)
    return Section(
        title="Results",
        words=(
            f"{task.questions} different questions. Difference: percentage points more than zero-shot on the same"
            f" questions and seeds, with its {level:.0f} % bootstrap interval over questions. p: exact McNemar test."
            " Fixed and broken: only the method right, only zero-shot right. Harm: broken, of all pairs. Failures are"
            f" in no share; a text without an answer is wrong. {P_TOO_SMALL}",
        ),
        table=Table(
            columns=(
                "method",
                "right",
                "pairs",
                "difference",
                "p",
                "fixed",
                "broken",
                "harm",
                "no answer",
                "failures",
            ),
            rows=tuple(_result(method) for method in task.methods),
        ),
        notes=tuple(note for method in task.methods for note in _notes(method)),
    )


def _result(method: MethodFigures) -> tuple[str, ...]:
    head = (method.label, counted(method.accuracy))
    tail = (str(method.no_answer), str(method.failures))
    if (found := method.versus) is None:
        return (*head, NONE, "reference", *[NONE] * 4, *tail)
    return (
        *head,
        paired(found),
        interval(found.difference),
        p_value(found.mcnemar.p),
        str(found.fixed),
        str(found.broken),
        percent(found.harm),
        *tail,
    )


def _notes(method: MethodFigures) -> Iterator[str]:
    if method.versus is not None:
        yield from said(method.label, method.versus)
        if method.versus.unpaired:
            yield f"{method.label}: {method.versus.unpaired} judged answers have no zero-shot answer beside them."
    if any(one.shared for one in method.seeds):
        yield f"{method.label}: nothing is drawn, so each answer stands here once for every seed."
    if method.own_reference:
        yield (
            f"{method.label}: {method.own_reference} pairs are with its own plain candidate, for zero_shot has no"
            " judged answer there."
        )
    if method.reference_differs:
        count = method.reference_differs
        yield f"{method.label}: its own plain candidate was judged otherwise than zero_shot {count}×."
    if method.failures and method.asked:
        least = Share.of(method.accuracy.part, method.asked)
        yield f"{method.label}: {counted(least)} if its failures counted as wrong."
    if method.learn_failures:
        yield f"{method.label}: learning failed {method.learn_failures}×."


def seeds(task: TaskFigures) -> Section:
    """Seeds one by one."""
    names = sorted({seed.seed for method in task.methods for seed in method.seeds})
    rows = []
    for method in task.methods:
        found = {one.seed: _seed(one) for one in method.seeds}
        rows.append((method.label, *(found.get(name, NONE) for name in names), _spread(method.seeds)))
    return Section(
        title="Seeds one by one",
        words=(
            "Right answers, with the difference to zero-shot of the same seed in points and its p. Mean and standard"
            " deviation are those of the finished seeds.",
        ),
        table=Table(columns=("method", *(f"seed {name}" for name in names), "mean ± deviation"), rows=tuple(rows)),
    )


def _seed(one: SeedFigures) -> str:
    told = [f"{percent(one.accuracy)}{_gained(one.versus)}"]
    if not one.finished:
        told.append(f"not finished: {one.asked} of {one.questions}")
    if one.failures:
        told.append(f"{one.failures} failed")
    return "; ".join(told)


def _gained(found: Comparison | None) -> str:
    if found is None or found.difference.estimate is None:
        return ""
    p = "" if found.mcnemar.p is None else f", p {p_value(found.mcnemar.p)}"
    return f" ({points(found.difference.estimate)}{p})"


def _spread(seeds: Sequence[SeedFigures]) -> str:
    finished = [one for one in seeds if one.finished]
    known = [100 * one.accuracy.value for one in finished if one.accuracy.value is not None]
    if not known:
        return NONE
    if len(known) == 1:
        return f"{known[0]:.1f}, 1 seed"
    if sum(not one.shared for one in finished) <= 1:
        return f"{known[0]:.1f}, the same for every seed"
    return f"{statistics.fmean(known):.1f} ± {statistics.stdev(known):.1f}"


def families(task: TaskFigures) -> Section | None:
    """By family; None when there is only one."""
    names = sorted({one.family for method in task.methods for one in method.families})
    if len(names) < 2:
        return None
    rows = []
    for method in task.methods:
        found = {one.family: one for one in method.families}
        cells = (f"{percent(found[n].accuracy)}{_gained(found[n].versus)}" if n in found else NONE for n in names)
        rows.append((method.label, *cells))
    return Section(
        title="Families",
        words=(f"Right answers by family, with the difference to zero-shot in points and its p. {P_TOO_SMALL}",),
        table=Table(columns=("method", *names), rows=tuple(rows)),
    )


def parts(task: TaskFigures) -> Section | None:
    """Before and after a stream changes; None where none does."""
    names = list(dict.fromkeys(one.part for method in task.methods for one in method.parts))
    if not names:
        return None
    rows = []
    for method in task.methods:
        for one in sorted(method.parts, key=lambda one: names.index(one.part)):
            head = (method.label, one.part, counted(one.accuracy))
            if (found := one.versus) is None:
                rows.append((*head, NONE, "reference", *[NONE] * 4))
                continue
            shown = interval(found.difference), p_value(found.mcnemar.p), str(found.fixed), str(found.broken)
            rows.append((*head, paired(found), *shown, percent(found.harm)))
    columns = ("method", "part", "right", "pairs", "difference", "p", "fixed", "broken", "harm")
    return Section(
        title="Parts of the stream",
        words=(
            "The stream changes on its way: what holds of each part, beside zero-shot on the same questions."
            f" {P_TOO_SMALL}",
        ),
        table=Table(columns=columns, rows=tuple(rows)),
    )


def costs(task: TaskFigures) -> Section:
    """Tokens and seconds."""
    rows = []
    for method in task.methods:
        one, other = method.answering, method.learning
        rows.append(
            (
                method.label,
                number(_per(one.tokens, one.count)),
                number(_per(one.prompt_tokens, one.count)),
                number(_per(one.seconds, one.count), 2),
                str(other.count),
                number(_per(other.tokens, other.count)),
                number(_per(other.seconds, other.count), 2),
                number(method.tokens_per_question),
                number(one.seconds + other.seconds, 0),
            )
        )
    columns = (
        "method",
        "tokens an answer",
        "read an answer",
        "s an answer",
        "learned from",
        "tokens a learning",
        "s a learning",
        "tokens a question",
        "s in all",
    )
    words = "Tokens are generated ones, over all calls of the model; those read are the tokens of prompts."
    return Section(title="Cost", words=(words,), table=Table(columns=columns, rows=tuple(rows)))


def _per(total: float, count: int) -> float | None:
    return total / count if count else None
