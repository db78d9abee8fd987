"""Seconds that are shared by what runs side by side, so that all charges add up to the time that passed.

Knows nothing of questions or methods.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class SharedClock:
    """Runs at full speed while one works, at half the speed while two do, and so on. Safe from any thread.

    ``now``: seconds of a clock that everybody shares.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._working = 0
        self._last = now()
        self._shared = 0.0

    def read(self) -> float:
        """Shared seconds; what somebody who works is charged is the difference of two readings."""
        with self._lock:
            return self._tick()

    @contextmanager
    def working(self) -> Iterator[None]:
        """One more works in here."""
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    def _change(self, more: int) -> None:
        with self._lock:
            self._tick()
            self._working += more

    def _tick(self) -> float:
        now = self._now()
        self._shared += (now - self._last) / max(1, self._working)
        self._last = now
        return self._shared
