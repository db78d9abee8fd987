"""Who may use the model now: answers first, then updates of memories, then their rollouts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from elm_agent.models.compute import ComputeThread

_Result = TypeVar("_Result")


class ModelLease:
    """One holder at a time. A waiting answer always goes before a waiting training step.

    Rollouts come last, so that memories that learn at the same time wait for each other's updates and then draw
    together. An answer joins rollouts in flight, so it waits at most for one update.
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._held = False
        self._answers_waiting = 0
        self._updates_waiting = 0
        self._thread = ComputeThread()

    def run(self, work: Callable[[], _Result]) -> _Result:
        """What the holder has to compute, on the thread where all of it is computed."""
        return self._thread.run(work)

    def close(self) -> None:
        """End the thread. Idempotent; whoever computes afterwards starts another."""
        self._thread.close()

    def expect_answers(self, count: int) -> None:
        """So many more answers wait for whoever is ``serving``; negative: so many of them are taken on."""
        with self._free:
            self._answers_waiting += count
            self._free.notify_all()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Hold the model for rows in flight, answers and rollouts alike."""
        with self._free:
            self._free.wait_for(lambda: not self._held and (self._answers_waiting > 0 or not self._updates_waiting))
            self._held = True
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Hold the model for something that somebody waits for."""
        self.expect_answers(1)
        try:
            with self._free:
                self._free.wait_for(lambda: not self._held)
                self._held = True
        finally:
            self.expect_answers(-1)  # training may be waiting for this answer, which an interrupt can end
        try:
            yield
        finally:
            self._release()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Hold the model for one update; waits as long as any answer waits."""
        with self._free:
            self._updates_waiting += 1
            try:
                self._free.wait_for(lambda: not self._held and not self._answers_waiting)
                self._held = True
            finally:
                self._updates_waiting -= 1
                self._free.notify_all()
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        with self._free:
            self._held = False
            self._free.notify_all()
