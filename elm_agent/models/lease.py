"""Who may use the model now: answers first, then updates of memories, then their rollouts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from elm_agent.models.compute import ComputeThread

_Result = TypeVar("_Result")
_DRAWING, _COMPUTING = frozenset({"drawing"}), frozenset({"computing"})
_BOTH = _DRAWING | _COMPUTING


class Run(Protocol):
    """Does work on the thread where a holder's work is done; see ``ComputeThread.run``."""

    def __call__(self, work: Callable[[], _Result]) -> _Result: ...


class ModelLease:
    """Two seats, one for rows in flight and one for all other work. Whoever sits in one has a thread to work on.

    A waiting answer always goes before a waiting training step. Without ``overlap`` everybody takes both seats, so
    there is one holder at a time, and all work is done on one thread. Rollouts come last then, so that memories that
    learn at the same time wait for each other's updates and then draw together. An answer joins rollouts in flight,
    so it waits at most for one update.

    With ``overlap`` rows are drawn while memories are updated.

    Args:
        drawer: the thread for rows in flight, with ``overlap``.
        computer: the thread for all other work, and without ``overlap`` for all.
    """

    def __init__(
        self,
        *,
        overlap: bool = False,
        drawer: ComputeThread | None = None,
        computer: ComputeThread | None = None,
    ) -> None:
        self._changed = threading.Condition()
        self._taken: frozenset[str] = frozenset()
        self._answers_waiting = 0
        self._updates_waiting = 0
        self._computer = computer or ComputeThread()
        self._drawer = (drawer or ComputeThread()) if overlap else self._computer
        self._rows, self._work = (_DRAWING, _COMPUTING) if overlap else (_BOTH, _BOTH)

    def close(self) -> None:
        """End the threads. Idempotent; whoever computes afterwards starts others."""
        self._drawer.close()
        self._computer.close()

    def expect_answers(self, count: int) -> None:
        """So many more answers wait for whoever is ``serving``; negative: so many of them are taken on."""
        with self._changed:
            self._answers_waiting += count
            self._changed.notify_all()

    @property
    def wanted_alone(self) -> bool:
        """Whether somebody waits for rows in flight to end, while others learn beside them."""
        return self._rows != self._work and self._updates_waiting > 0

    @contextmanager
    def serving(self) -> Iterator[Run]:
        """Hold the model for rows in flight, answers and rollouts alike."""
        with self._changed:
            self._take(self._rows, lambda: self._answers_waiting > 0 or not self._updates_waiting)
        try:
            yield self._drawer.run
        finally:
            self._release(self._rows)

    @contextmanager
    def answering(self) -> Iterator[Run]:
        """Hold the model for something that somebody waits for."""
        self.expect_answers(1)
        try:
            with self._changed:
                self._take(self._work)
        finally:
            self.expect_answers(-1)  # training may be waiting for this answer, which an interrupt can end
        try:
            yield self._computer.run
        finally:
            self._release(self._work)

    @contextmanager
    def learning(self) -> Iterator[Run]:
        """Hold the model for one update; waits as long as any answer waits."""
        with self._updating(self._work):
            yield self._computer.run

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the model for an update that nothing may be drawn beside; waits as long as any answer waits."""
        with self._updating(_BOTH):
            yield

    @contextmanager
    def _updating(self, seats: frozenset[str]) -> Iterator[None]:
        in_the_way = bool(seats & self._rows)
        with self._changed:
            self._updates_waiting += in_the_way
            try:
                self._take(seats, lambda: not self._answers_waiting and (in_the_way or not self._updates_waiting))
            finally:
                self._updates_waiting -= in_the_way
                self._changed.notify_all()
        try:
            yield
        finally:
            self._release(seats)

    def _take(self, seats: frozenset[str], when: Callable[[], bool] = lambda: True) -> None:
        """Once they are free and it is ``when``; with ``_changed`` held."""
        self._changed.wait_for(lambda: not self._taken & seats and when())
        self._taken |= seats

    def _release(self, seats: frozenset[str]) -> None:
        with self._changed:
            self._taken -= seats
            self._changed.notify_all()
