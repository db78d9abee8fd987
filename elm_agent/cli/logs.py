"""Log lines of the library on standard error: words for people, or JSON for programs. Configures, logs nothing.

Words are warnings alone, one line each, with the traceback only with ELM_DEBUG. JSON has also what happens
(``memory.step_logs``), one object a line: ``time``, ``level``, ``logger``, ``message``, the ids that the record is
about (``memory_id``, ``job_id``, ``namespace``, ...), and ``error`` and ``traceback`` where there is one.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

from elm_agent.cli.output import clean, to_json

_OURS = ("elm_agent", "uvicorn")
_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class _Words(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = clean(f"{record.levelname.lower()}: {' '.join(record.getMessage().split())}")
        if record.exc_info and os.environ.get("ELM_DEBUG"):
            text += f"\n{self.formatException(record.exc_info)}"
        return text


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: _plain(value) for name, value in vars(record).items() if name not in _EVERY_RECORD}
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line |= {"error": f"{type(error).__name__}: {error}", "traceback": self.formatException(record.exc_info)}
        return to_json(line).encode("utf-8", "backslashreplace").decode()


class _Lines(logging.Handler):
    """Looks up standard error at each line, so that it goes where standard error is now."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def lines_on_stderr(form: str) -> None:
    """Switch them on, in the form "text" or "json"; again in another form."""
    lines = _Lines(logging.INFO if form == "json" else logging.WARNING)
    lines.setFormatter(_Json() if form == "json" else _Words())
    for name in _OURS:
        logger = logging.getLogger(name)
        for before in [handler for handler in logger.handlers if isinstance(handler, _Lines)]:
            logger.removeHandler(before)
        if form == "json" or name == "elm_agent":
            logger.addHandler(lines)
            logger.setLevel(lines.level if form == "json" else logging.NOTSET)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else str(value)
