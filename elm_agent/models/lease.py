"""Who may use the model now: answers first, training between them. Knows nothing of what they do with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ModelLease:
    """One holder at a time. A waiting answer always goes before a waiting training step."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._held = False
        self._answers_waiting = 0

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Hold the model for one batch of answers; waits at most for one training step."""
        with self._free:
            self._answers_waiting += 1
            try:
                self._free.wait_for(lambda: not self._held)
                self._held = True
            finally:
                self._answers_waiting -= 1
                self._free.notify_all()  # training may be waiting for this answer, which an interrupt can end
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Hold the model for one training step; waits as long as any answer waits."""
        with self._free:
            self._free.wait_for(lambda: not self._held and not self._answers_waiting)
            self._held = True
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        with self._free:
            self._held = False
            self._free.notify_all()
