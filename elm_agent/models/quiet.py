"""Keeping transformers' progress bars and remarks off the terminal while it loads, and its errors short."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors and no bars inside; what the application had chosen is put back after."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What a sentence can quote of an error whose message may fill a page."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
