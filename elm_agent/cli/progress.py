"""Progress bars, always on standard error; on a pipe they keep silent. Knows nothing of what progresses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from elm_agent.cli.output import Output

Advance = Callable[[int, str], None]


@contextmanager
def download_bar(out: Output, name: str) -> Iterator[Callable[[int, int], None]]:
    """A function to tell (bytes done, bytes in all)."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), **_where(out)) as bar:
        task: list[Any] = []

        def tell(done: int, total: int) -> None:
            if not task:
                task.append(bar.add_task(f"fetching {name}", total=total))
            bar.update(task[0], completed=done, total=total)
            if done >= total:  # what follows takes most of a minute, once, and cannot be measured
                bar.update(task[0], description=f"converting {name}, once", total=None)

        yield tell


@contextmanager
def stream_bar(out: Output, total: int | None, done: int) -> Iterator[Advance]:
    """A function to tell (lines finished since the last call, a few words about the current one)."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    words = TextColumn("{task.description}", markup=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), words)
    with Progress(*columns, **_where(out)) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda finished, text: bar.update(task, advance=finished, description=text)


@contextmanager
def count_bar(out: Output, what: str) -> Iterator[Callable[[int, int], None]]:
    """A function to tell (how many are done, how many there are)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, **_where(out)) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _where(out: Output) -> dict[str, Any]:
    """On the terminal of standard error, if there is one and no JSON is written to it; other output is left alone."""
    mixed = out.json and sys.stdout.isatty()
    return {
        "console": out.errors,
        "transient": True,
        "redirect_stdout": False,
        "redirect_stderr": False,
        "disable": mixed or not out.errors.is_terminal,
    }
