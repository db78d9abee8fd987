"""A report as Markdown and as one page of HTML. Both hold the same words and tables; the page has the plots too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from elm_agent.bench.evidence import report_bank, report_beside, report_tables
from elm_agent.bench.evidence.contract import Protocols
from elm_agent.bench.evidence.figures import TaskFigures
from elm_agent.bench.evidence.report import Report
from elm_agent.bench.evidence.report_plots import Plots, offline_plots, task_plots
from elm_agent.bench.evidence.report_section import Part, Section, Table, plain
from elm_agent.bench.evidence.report_summary import opening

LISTED = 100
"""Failures and faults that a page lists; the JSON has all."""


def parts_of(report: Report) -> Iterator[Part]:
    """The chapters, in the order of reading."""
    yield opening(report.tasks, report.offline, _names(report))
    plots = Plots([method.label for task in report.tasks for method in task.methods] + _names(report))
    for task in report.tasks:
        yield _task(report, task, plots)
    for name in dict.fromkeys(one.task for one in report.offline):
        found = [one for one in report.offline if one.task == name]
        tables = (report_bank.offline(found), report_bank.gains(found))
        drawn = offline_plots(plots, found, report.run.lines)
        yield Part(title=f"Memories offline: {name}", sections=_present((*tables, *drawn)))
    yield Part(title="Failures and data", sections=(_failures(report), *_data(report.run.run)))


def title(report: Report) -> str:
    run = report.run.run
    model = (run.get("model") or {}).get("name", "a model")
    return plain(f"{str(run.get('protocol', 'run')).capitalize()}: does memory help {model}?")


def about(report: Report) -> list[tuple[str, str]]:
    """How the run was made, as run.json says: command, date and environment first, without settings and data."""
    run = report.run.run
    told = dict(_flat(run.get("environment") or {}))
    rest = {name: value for name, value in run.items() if name not in ("environment", "settings", "task_sets")}
    first = {name: told[name] for name in ("command", "date") if name in told}
    return list((first | told | dict(_flat(rest))).items())


def settings(report: Report) -> list[tuple[str, str]]:
    return list(_flat(report.run.run.get("settings") or {}))


def summary(report: Report) -> Iterator[tuple[str, Table, tuple[str, ...]]]:
    """For a terminal: title, table and notes of the main results of each task, then of memories offline."""
    for task in report.tasks:
        found = report_tables.results(task)
        if found.table is not None:
            yield _named(task), found.table, found.notes
    offline = report_bank.offline(report.offline)
    if offline is not None and offline.table is not None:
        yield offline.title, offline.table, offline.notes
    left = (*report.unfinished, *(f"{len(report.failures)} failures" for _ in report.failures[:1]))
    if left:
        yield "Not finished or failed", Table(columns=("what",), rows=tuple((one,) for one in left)), ()


def markdown(report: Report, parts: Sequence[Part]) -> str:
    return "\n".join(_markdown(report, parts)) + "\n"


def html(report: Report, parts: Sequence[Part]) -> str:
    """One page that loads nothing from anywhere."""
    environment = Environment(
        loader=PackageLoader("elm_agent.bench.evidence", "."),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else plain(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"anchor": _anchor, "breakable": _breakable}
    page = environment.get_template("report.html.j2")
    return page.render(
        title=title(report),
        about=about(report),
        settings=settings(report),
        unfinished=report.unfinished,
        parts=parts,
    )


# --- chapters -----------------------------------------------------------------------------------------------------


def _task(report: Report, task: TaskFigures, plots: Plots) -> Part:
    tables = (
        report_tables.results(task),
        report_tables.seeds(task),
        report_tables.families(task),
        report_tables.parts(task),
        report_beside.against(task),
        report_beside.among(task),
        report_bank.routing(task),
        report_tables.costs(task),
        report_bank.memories(task),
        report_bank.most_used(task),
    )
    online = report.run.run.get("protocol") == Protocols.ONLINE
    drawn = task_plots(plots, task, report.run.lines, online=online)
    return Part(title=_named(task), sections=_present((*tables, *drawn)))


def _named(task: TaskFigures) -> str:
    return "All tasks together" if task.task is None else task.task


def _failures(report: Report) -> Section:
    rows = tuple(
        (one.phase, one.method, str(one.seed), one.task, one.item_id, one.learner or "", one.reason)
        for one in report.failures[:LISTED]
    )
    count = len(report.failures)
    words = f"{count} recorded. They are in no accuracy and in no comparison."
    if count > LISTED:
        words += f" The first {LISTED} of them; report.json lists all."
    columns = ("phase", "method", "seed", "task", "question", "memory of", "reason")
    return Section(title="Failures", words=(words,), table=Table(columns=columns, rows=rows) if rows else None)


def _data(run: Mapping[str, Any]) -> Iterator[Section]:
    """What the data sets had that no question was made of, and questions that are equal."""
    for told in (run.get("task_sets") or {}).values():
        faults, equal = told.get("faults") or [], told.get("duplicates") or []
        words = (
            f"{told.get('questions')} questions. {len(faults)} rows could not be used; they count as nothing."
            f" {len(equal)} groups of questions are equal: no memory serves a question that it was made from, and"
            " each group is one unit of drawing."
        )
        rows = [("not used", str(fault["where"]), str(fault["reason"])) for fault in faults[:LISTED]]
        rows += [("equal", ", ".join(map(str, ids)), "") for ids in equal[:LISTED]]
        table = Table(columns=("what", "where", "why"), rows=tuple(rows)) if rows else None
        yield Section(title=f"Data of {told.get('name')}", words=(words,), table=table)


def _names(report: Report) -> list[str]:
    """Every method, in the order in which they ran."""
    return list(dict.fromkeys(line.method for line in report.run.lines))


def _present(sections: Sequence[Section | None]) -> tuple[Section, ...]:
    return tuple(section for section in sections if section is not None)


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        path = f"{above}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}.")
        elif isinstance(value, list):
            if value and all(not isinstance(one, dict | list) for one in value):
                yield path, ", ".join(map(str, value))
        elif value is not None:
            yield path, str(value)


# --- Markdown -------------------------------------------------------------------------------------------------------


def _markdown(report: Report, parts: Sequence[Part]) -> Iterator[str]:
    yield f"# {_escaped(title(report))}"
    if report.unfinished:
        yield "\n**Not finished:**\n"
        yield from (f"- {_escaped(line)}" for line in report.unfinished)
    for part in parts:
        yield f"\n## {_escaped(part.title)}"
        for section in part.sections:
            yield from _section(section)
    yield "\n## How it was made\n"
    yield from _table(Table(columns=("what", ""), rows=tuple(about(report))))
    yield "\nSettings and data sets: run.json in the folder of the run, and report.json."


def _section(section: Section) -> Iterator[str]:
    yield f"\n### {_escaped(section.title)}\n"
    for words in section.words:
        yield f"{_escaped(words)}\n"
    if section.table is not None:
        yield from _table(section.table)
    if section.pictures:
        yield from (f"- {_escaped(picture.alt)}" for picture in section.pictures)
    if section.notes:
        yield from [""] if section.table is not None or section.pictures else []
        yield from (f"- {_escaped(note)}" for note in section.notes)


def _table(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(map(_escaped, table.columns))} |"
    yield f"|{' --- |' * len(table.columns)}"
    for row in table.rows:
        yield f"| {' | '.join(map(_escaped, row))} |"


def _escaped(text: str) -> str:
    """Stored text neither breaks a table nor becomes a link, a tag or emphasis."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", plain(text))


def _breakable(text: str) -> Markup:
    """The name of a method goes on in the next line where a part of it ends."""
    return Markup("+<wbr>").join(Markup.escape(part) for part in plain(text).split("+"))


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
