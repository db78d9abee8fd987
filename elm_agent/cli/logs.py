"""Warnings of the library on standard error, one line each; tracebacks only with ELM_DEBUG."""

from __future__ import annotations

import logging
import os
import sys

from elm_agent.cli.output import clean


class _OneLine(logging.Handler):
    """Looks up standard error at each line, so that it goes where standard error is now."""

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname.lower()}: {' '.join(record.getMessage().split())}"
        print(clean(text), file=sys.stderr, flush=True)
        if record.exc_info and os.environ.get("ELM_DEBUG"):
            print(logging.Formatter().formatException(record.exc_info), file=sys.stderr, flush=True)


def one_line_logs() -> None:
    """Switch it on, once."""
    logger = logging.getLogger("elm_agent")
    if not any(isinstance(handler, _OneLine) for handler in logger.handlers):
        logger.addHandler(_OneLine(logging.WARNING))
