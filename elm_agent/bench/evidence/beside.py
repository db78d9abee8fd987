"""Work that needs nothing of each other goes on side by side, so that its rows share the engine's batches.

Knows threads; knows nothing of questions or methods.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

Work = Callable[[], object]


class Stopped(BaseException):
    """The run ends: whoever meets this leaves."""


class Stop:
    """Told once that the run ends; asked by everybody before the next thing."""

    def __init__(self) -> None:
        self._told = threading.Event()

    def tell(self) -> None:
        self._told.set()

    def __bool__(self) -> bool:
        return self._told.is_set()

    def check(self) -> None:
        """Raises ``Stopped``."""
        if self:
            raise Stopped


def side_by_side(works: Sequence[Work], *, together: int, stop: Stop) -> None:
    """Do all of it, begun in order, at most ``together`` at a time; a single one on the caller's own thread.

    What one raises ends the others at their next look at ``stop``, and is raised; so does an interrupt.
    """
    if len(works) < 2 or together < 2:
        for work in works:
            work()
        return
    with ThreadPoolExecutor(min(together, len(works)), thread_name_prefix="elm-evidence") as pool, _telling(stop):
        futures = [pool.submit(_unless, stop, work) for work in works]
        wait(futures)
    for error in _errors(futures):
        raise error


@contextmanager
def _telling(stop: Stop) -> Iterator[None]:
    """Whatever ends this early stops the others, too."""
    try:
        yield
    except BaseException:
        stop.tell()
        raise


def _unless(stop: Stop, work: Work) -> None:
    stop.check()
    with _telling(stop):  # before this thread takes on the next work
        work()


def _errors(futures: Iterable[Future[None]]) -> list[BaseException]:
    """What was raised, the cause before those that were only told to stop."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    return sorted(errors, key=lambda error: isinstance(error, Stopped))
