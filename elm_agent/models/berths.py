"""How many memories learn at the same time: as many as there is room for, and one at least. Knows bytes alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from elm_agent.errors import JobCancelled

_LOOK_SECONDS = 0.5  # others free memory without telling


class Berths:
    """Whoever would take more than is spare waits until others have left.

    ``spare``: the bytes that may be taken now, or None where nobody can say.
    """

    def __init__(self, spare: Callable[[], int | None]) -> None:
        self._spare = spare
        self._changed = threading.Condition()
        self._taken: list[int] = []

    @contextmanager
    def berth(self, needed: int, cancelled: Callable[[], bool]) -> Iterator[None]:
        """In here are as many as fit, each of whom needs so many bytes. Raises ``JobCancelled`` while it waits."""
        with self._changed:
            while not self._fits(needed):
                if cancelled():
                    raise JobCancelled("stopped while it waited for memory, as asked")
                self._changed.wait(_LOOK_SECONDS)
            self._taken.append(needed)
        try:
            yield
        finally:
            with self._changed:
                self._taken.remove(needed)
                self._changed.notify_all()

    def _fits(self, needed: int) -> bool:
        spare = self._spare()
        # Half is left to what else is computed. Those inside may not have taken theirs yet.
        return not self._taken or spare is None or sum(self._taken) + needed <= spare // 2
