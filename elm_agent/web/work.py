"""Work that takes longer than a page may: one thread for each, its progress for whoever asks. Nothing is queued."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from elm_agent.errors import ElmError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
Work = Callable[[Progress], Any]


@dataclass(frozen=True, slots=True)
class Status:
    """``state``: "idle", "running", "done" or "failed"; ``result`` when done, ``problem`` when failed."""

    state: str = "idle"
    done: int = 0
    total: int = 0
    result: Any = None
    problem: str | None = None


class Works:
    """Works by name; the last one of each name is remembered."""

    def __init__(self) -> None:
        self._status: dict[str, Status] = {}
        self._lock = threading.Lock()

    def status(self, name: str) -> Status:
        return self._status.get(name, Status())

    def start(self, name: str, work: Work) -> None:
        """Begin, unless it runs already."""
        with self._lock:
            if self.status(name).state == "running":
                return
            self._status[name] = Status("running")
        threading.Thread(target=self._run, args=(name, work), name=f"elm-web-{name}", daemon=True).start()

    def _run(self, name: str, work: Work) -> None:
        try:
            result = work(lambda done, total: self._status.update({name: Status("running", done, total)}))
        except ElmError as error:
            self._status[name] = Status("failed", problem=str(error))
        except Exception as error:  # the page says it, the log has the rest
            logger.warning("%s failed", name, exc_info=error)
            self._status[name] = Status("failed", problem=f"unexpected {type(error).__name__}: {error}")
        else:
            self._status[name] = Status("done", result=result)
