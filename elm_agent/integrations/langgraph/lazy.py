"""Runtimes that open at their first use, so that a file which names a graph loads at once."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable

from elm_agent.runtime import Runtime, open_runtime
from elm_agent.settings import load_settings

SETTINGS_FILE = "ELM_SETTINGS"
"""Environment variable that names a TOML file for ``shared_runtime``."""


def once(opener: Callable[[], Runtime]) -> Callable[[], Runtime]:
    """``opener`` that opens at most once, whoever asks first; the runtime is closed when the process ends.

    An opener that raises is asked again next time.
    """
    lock = threading.Lock()
    opened: list[Runtime] = []

    def get() -> Runtime:
        with lock:
            if not opened:
                opened.append(opener())
                atexit.register(opened[0].close)
            return opened[0]

    return get


def _open() -> Runtime:
    return open_runtime(load_settings(os.environ.get(SETTINGS_FILE)))


shared_runtime = once(_open)
"""The one runtime of this process: from ``ELM_...`` variables, and the file that ``ELM_SETTINGS`` names."""
