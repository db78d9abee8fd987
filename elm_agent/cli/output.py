"""What a command shows: tables for people, JSON for programs. Knows nothing of banks or models.

With ``json`` standard output carries JSON and nothing else; words for people go to standard error.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

BARS = "▁▂▃▄▅▆▇█"
PIPE_WIDTH = 200


def plain(value: Any) -> Any:
    """``value`` as JSON can carry it: records become objects, times ISO text, NaN and infinity null."""
    if value is None or (isinstance(value, bool | int | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, PurePath):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    raise TypeError(f"no JSON form for {type(value).__name__}")


def to_json(value: Any, *, indent: int | None = None) -> str:
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


def clean(value: Any) -> str:
    """Text that is safe on a terminal: what a model or a file says must not move the cursor."""
    text = "-" if value is None else str(value)
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text.replace("\t", " "))


def short(value: Any, width: int = 60) -> str:
    """One line of at most ``width`` characters."""
    text = " ".join(clean(value).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def when(value: datetime | None) -> str:
    return "-" if value is None else value.strftime("%Y-%m-%d %H:%M:%S")


def sparkline(values: Sequence[float], *, low: float | None = None, high: float | None = None) -> str:
    """One bar for each value, from ``low`` to ``high`` (by default the range of the values); '?' if not finite."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "?" * len(values)
    bottom = min(finite) if low is None else low
    span = (max(finite) if high is None else high) - bottom
    return "".join(_bar((value - bottom) / span if span > 0 else 0.5) for value in values)


def _bar(share: float) -> str:
    if not math.isfinite(share):
        return "?"
    return BARS[min(max(int(share * len(BARS)), 0), len(BARS) - 1)]


def _console(*, stderr: bool) -> Console:
    """No markup, for questions may hold brackets; a pipe has no width, so tables there are not squeezed into 80."""
    from rich.console import Console

    class Told(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # the program's one handler decides, not the console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Told(stderr=stderr, markup=False, highlight=False, emoji=False, width=width)


class Output:
    """Where a command speaks. ``json`` chooses the form."""

    def __init__(self, *, json: bool) -> None:
        self.json = json

    @cached_property
    def console(self) -> Console:
        """Standard output, for people. On one screen there is one console, or a bar and lines would mix."""
        return self.errors if sys.stdout.isatty() and sys.stderr.isatty() else _console(stderr=False)

    @cached_property
    def errors(self) -> Console:
        """Standard error, for people and progress."""
        return _console(stderr=True)

    def document(self, value: Any) -> None:
        """The one JSON document of a command."""
        self._write(to_json(value, indent=2))

    def event(self, name: str, detail: Mapping[str, Any]) -> None:
        """One line of JSON."""
        self._write(to_json({"event": name, **detail}))

    def say(self, text: str) -> None:
        """A result in words; nothing with ``json``."""
        if not self.json:
            self.console.print(clean(text), soft_wrap=True)

    def note(self, text: str) -> None:
        """A word about the work, on standard error in both forms."""
        self.errors.print(clean(text), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table for people; numbers are set to the right."""
        from rich.table import Table

        content = [list(row) for row in rows]
        made = Table(box=None, header_style="bold", pad_edge=False)
        for index, column in enumerate(columns):
            numeric = bool(content) and all(isinstance(row[index], int | float) for row in content)
            made.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in content:
            made.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else clean(cell) for cell in row))
        self.console.print(made)

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
