"""Who works off the queue: the caller itself, a thread of this process, or another process. See ``JobRunner``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from elm_agent.errors import JobError
from elm_agent.memory.worker import Worker

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank

_LOOK_SECONDS = 0.05  # between two looks at the queue while somebody waits


class InlineRunner:
    """``notify`` works off every due job before it returns. For tests and scripts without concurrency."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def start(self) -> None:
        """Nothing to start."""

    def notify(self) -> None:
        self._worker.run(once=True)

    def wait_idle(self, timeout: float | None = None) -> bool:
        def idle() -> bool:
            self._worker.run(once=True)
            return self._worker.idle()

        return wait_until(idle, timeout)

    def stop(self) -> None:
        self._worker.stop()


class ThreadRunner:
    """One daemon thread of this process. Not restarted once stopped."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._error: BaseException | None = None
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="elm-learner", daemon=True)
                self._thread.start()

    def notify(self) -> None:
        self._worker.wake()

    def wait_idle(self, timeout: float | None = None) -> bool:
        """See ``JobRunner``. Raises ``JobError`` when the thread has ended, for then nobody works."""

        def idle() -> bool:
            if self._worker.idle():
                return True
            if self._thread is None or not self._thread.is_alive():
                raise JobError("jobs are waiting, but the learning thread does not run") from self._error
            return False

        return wait_until(idle, timeout)

    def stop(self) -> None:
        self._worker.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._worker.run()
        except BaseException as error:  # kept for whoever waits; the thread's own hook reports it as well
            self._error = error
            raise


class ExternalRunner:
    """``elm-agent worker`` does it, in processes of its own: here one can only wait.

    ``tasks``: names of the tasks whose jobs are waited for; None waits for all.
    """

    def __init__(self, bank: Bank, model_id: str, tasks: Collection[str] | None = None) -> None:
        self._bank = bank
        self._model_id = model_id
        self._tasks = tasks

    def start(self) -> None:
        """Nothing to start."""

    def notify(self) -> None:
        """Workers poll the queue."""

    def wait_idle(self, timeout: float | None = None) -> bool:
        return wait_until(lambda: self._bank.jobs.idle(self._model_id, self._tasks), timeout)

    def stop(self) -> None:
        """Nothing to stop."""


def wait_until(idle: Callable[[], bool], timeout: float | None) -> bool:
    """Look again and again until ``idle()``; False when ``timeout`` seconds have passed first."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while not idle():
        if deadline is not None and time.monotonic() >= deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True
