"""The report of a run folder, made without a model: Markdown, a page of HTML that needs nothing else, and JSON.

Every figure is computed again from the stored lines each time. Knows nothing of how a run is made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elm_agent.bench.evidence.contract import Phase, StoredRun
from elm_agent.bench.evidence.figures import Failure, TaskFigures, failures, task_figures
from elm_agent.bench.evidence.matrix import OfflineFigures, offline_figures
from elm_agent.bench.evidence.report_left import unfinished
from elm_agent.errors import InputError

FILES = ("report.md", "report.html", "report.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All figures of a run, and the run itself for the plots. ``unfinished``: what is not answered yet."""

    run: StoredRun
    tasks: tuple[TaskFigures, ...]
    offline: tuple[OfflineFigures, ...]
    failures: tuple[Failure, ...]
    unfinished: tuple[str, ...]


def build(run: StoredRun, *, told: Callable[[str], None] = lambda _: None) -> Report:
    """Compute every figure. ``told`` hears the name of each method that is done.

    Raises:
        InputError: the run has no answered question.
    """
    if not any(line.phase is Phase.ANSWER for line in run.lines):
        raise InputError(
            f"{run.folder} has no answered question yet: let its run go on, then ask for the report again"
        )
    return Report(
        run=run,
        tasks=task_figures(run.lines, run.items, told=told),
        offline=offline_figures(run.lines, run.items),
        failures=failures(run.lines),
        unfinished=tuple(unfinished(run)),
    )


def document(report: Report) -> dict[str, Any]:
    """Every figure and every failure as plain JSON, with run.json."""
    return {
        "run": dict(report.run.run),
        "tasks": [asdict(task) for task in report.tasks],
        "offline": [asdict(one) for one in report.offline],
        "failures": [asdict(one) for one in report.failures],
        "unfinished": list(report.unfinished),
    }


def write(folder: Path, report: Report) -> list[Path]:
    """``FILES`` in ``folder``; each one is replaced whole.

    Raises:
        InputError: nothing can be written there.
    """
    from elm_agent.bench.evidence.report_pages import html, markdown, parts_of

    parts = list(parts_of(report))
    figures = json.dumps(document(report), indent=1, allow_nan=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [
            _replace(folder / name, text)
            for name, text in zip(FILES, (markdown(report, parts), html(report, parts), figures), strict=True)
        ]
    except OSError as error:
        raise InputError(f"--out {folder} cannot be written ({error.strerror}): name another folder") from None


def _replace(path: Path, text: str) -> Path:
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_bytes(text.encode("utf-8", "backslashreplace"))
    os.replace(fresh, path)
    return path
