"""Progress bars, always on standard error; on a pipe they keep silent. Knows nothing of what progresses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from elm_agent.cli.output import Output

if TYPE_CHECKING:
    from elm_agent.settings import Settings


class Advance(Protocol):
    """A function to tell (things finished since the last call, a few words about the current one)."""

    def __call__(self, finished: int, text: str, *, total: int | None = None) -> None:
        """``total``: how many there are, where it was not known before."""
        ...


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
    """Tells lines that are finished; see ``Advance``."""
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

        def tell(finished: int, text: str, *, total: int | None = None) -> None:
            bar.update(task, advance=finished, description=text)
            if total is not None:
                bar.update(task, total=total)

        yield tell


@contextmanager
def count_bar(out: Output, what: str) -> Iterator[Callable[[int, int], None]]:
    """A function to tell (how many are done, how many there are)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, **_where(out)) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def fetch_embedded(show: Output, settings: Settings) -> None:
    """An embedded model is downloaded under a bar, before anything else has one."""
    from elm_agent.models.pull import pull
    from elm_agent.models.registry import EMBEDDED

    if settings.model in EMBEDDED:
        with download_bar(show, settings.model) as progress:
            pull(settings.model, cache_dir=settings.cache_dir, offline=settings.offline, progress=progress)


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
