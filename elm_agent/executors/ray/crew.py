"""The actors there are: hire, watch, let go. Told how many are wanted; knows neither queue nor threads.

An actor is placed, then opens its runtime, then works until it is told to end. One that dies is logged and
dropped; whoever asks for a number gets another in its stead. All methods are for one thread.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from elm_agent.executors.ray import cluster
from elm_agent.executors.ray.actor import Learner, Place
from elm_agent.executors.ray.placing import Strategy, Target, target

logger = logging.getLogger(__name__)

_FAILURES = 3  # actors that died one after the other before any worked: no accident
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds before another actor replaces one that failed


class ActorState(StrEnum):
    """Life of an actor."""

    PLACING = "placing"  # the cluster has given it no place yet
    OPENING = "opening"  # it loads the model
    WORKING = "working"
    LEAVING = "leaving"  # it was told to end, and finishes what it has in hand


@dataclass(frozen=True, slots=True)
class ActorStatus:
    """One actor; ``seconds``: in this state. ``place`` is None while it has none."""

    name: str
    state: ActorState
    seconds: float
    place: Place | None


@dataclass(slots=True)
class _Actor:
    name: str
    handle: Any
    awaited: Any  # the call whose end is the end of the present state
    state: ActorState
    since: float
    node: str | None
    place: Place | None = None

    def enter(self, state: ActorState, awaited: Any) -> None:
        self.state, self.awaited, self.since = state, awaited, time.monotonic()


class Crew:
    """See the module.

    Args:
        opening: what ``Learner.open`` takes.
        num_cpus, num_gpus: reserved for each actor.
        most: never more actors than this, those that leave included.
        place_seconds: an actor without a place for this long is a problem.

    ``problem`` is the last trouble, None once an actor works. ``hopeless``: more of the same would not help.
    """

    def __init__(
        self,
        *,
        opening: tuple[str, Mapping[str, Any], str, str | None],
        num_cpus: float,
        num_gpus: float,
        strategy: Strategy,
        most: int,
        place_seconds: float,
    ) -> None:
        self.problem: str | None = None
        self.hopeless = False
        self._opening = opening
        self._wanted = {name: amount for name, amount in (("CPU", num_cpus), ("GPU", num_gpus)) if amount}
        self._class = ray.remote(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0, max_task_retries=0, max_concurrency=4
        )(Learner)
        self._strategy: Strategy = strategy
        self._most = most
        self._place_seconds = place_seconds
        self._numbers = itertools.count(1)
        self._actors: list[_Actor] = []
        self._unplaced_since: float | None = None
        self._no_place = False
        self._failures = 0  # since the last actor that came to work
        self._pause = _FIRST_PAUSE
        self._not_before = 0.0

    def status(self) -> tuple[ActorStatus, ...]:
        now = time.monotonic()
        return tuple(ActorStatus(actor.name, actor.state, now - actor.since, actor.place) for actor in self._actors)

    @property
    def staying(self) -> int:
        """Actors that were not told to end."""
        return sum(actor.state is not ActorState.LEAVING for actor in self._actors)

    @property
    def working(self) -> bool:
        """Whether any actor works, or will once its model is open."""
        return any(actor.state is not ActorState.PLACING for actor in self._actors)

    # --- watching ------------------------------------------------------------------------------------------

    def look(self) -> None:
        """See what became of every actor, and say so where one is lost."""
        by_call = {actor.awaited: actor for actor in self._actors}
        if by_call:
            ready, _ = ray.wait(list(by_call), num_returns=len(by_call), timeout=0)
            for call in ready:
                self._advance(by_call[call], call)
        self._judge_places()

    def _advance(self, actor: _Actor, call: Any) -> None:
        try:
            result = ray.get(call)
        except RayTaskError as error:  # raised by our own code in there: it would be raised again
            self.hopeless |= actor.state is ActorState.OPENING
            self._failed(actor, f"failed while {actor.state}: {_one_line(error.cause or error)}")
        except RayError as error:
            if actor.state is ActorState.PLACING and actor.node not in (None, *cluster.nodes()):
                logger.info("%s had no place: node %s is gone", actor.name, actor.node)
                self._drop(actor)  # a dead node counts as alive until Ray misses it: no failure of the actor
                return
            self._failed(actor, f"died while {actor.state}: {_one_line(error)}")
        else:
            self._next(actor, result)

    def _next(self, actor: _Actor, result: Any) -> None:
        match actor.state:
            case ActorState.PLACING:
                actor.place, actor.node, self._no_place = result, result.node, False
                actor.enter(ActorState.OPENING, actor.handle.open.remote(*self._opening))
            case ActorState.OPENING:
                actor.enter(ActorState.WORKING, actor.handle.run.remote())
                self.problem, self.hopeless, self._failures, self._pause = None, False, 0, _FIRST_PAUSE
                logger.info("%s works on node %s", actor.name, _where(actor))
            case ActorState.WORKING:
                self._failed(actor, "ended without being told to")
            case ActorState.LEAVING:
                self._drop(actor)

    def _failed(self, actor: _Actor, how: str) -> None:
        """One line for the log, and a pause before the next one; its job comes back by itself."""
        self.problem = f"{actor.name} on node {_where(actor)} {how}"
        logger.warning("%s; a job it had is taken over when its lease runs out", self.problem)
        self._failures += 1
        self.hopeless |= self._failures >= _FAILURES
        self._not_before = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._drop(actor)

    def _drop(self, actor: _Actor) -> None:
        self._actors.remove(actor)
        ray.kill(actor.handle)

    def _judge_places(self) -> None:
        placing = [actor.since for actor in self._actors if actor.state is ActorState.PLACING]
        since = min(placing, default=self._unplaced_since)
        waited = 0.0 if since is None else time.monotonic() - since
        if waited > self._place_seconds and not self._no_place:
            self._no_place = self.hopeless = True
            self.problem = f"a worker has had no place for {waited:.0f} s: {cluster.describe(self._wanted)}"
            logger.warning("%s", self.problem)
        elif since is None and self._no_place:  # nobody waits for a place any more
            self.problem, self._no_place, self.hopeless = None, False, False

    # --- hiring and letting go -----------------------------------------------------------------------------

    def hire(self, count: int) -> None:
        """Start actors until ``count`` stay, as far as ``most`` and the cluster let us."""
        while self.staying < count and len(self._actors) < self._most and time.monotonic() >= self._not_before:
            taken = [actor.node for actor in self._actors]
            where = target(self._strategy, taken, cluster.fitting(self._wanted))
            if where is None:
                if self._unplaced_since is None and None not in taken:
                    self._unplaced_since = time.monotonic()
                return
            self._unplaced_since = None
            self._start(where)

    def _start(self, where: Target) -> None:
        handle = self._class.options(scheduling_strategy=_scheduling(where)).remote()
        node = None if where.soft else where.node
        self._actors.append(
            _Actor(
                name=f"learner {next(self._numbers)}",
                handle=handle,
                awaited=handle.where.remote(),
                state=ActorState.PLACING,
                since=time.monotonic(),
                node=node,
            )
        )

    def let_go(self, count: int) -> None:
        """Ask the newest to end after their job until ``count`` stay; who does not work yet goes first."""
        staying = [actor for actor in reversed(self._actors) if actor.state is not ActorState.LEAVING]
        staying.sort(key=lambda actor: actor.state is ActorState.WORKING)
        for actor in staying[: max(0, len(staying) - count)]:
            self._end(actor, lambda handle: handle.finish)

    def dismiss(self, seconds: float) -> None:
        """Ask all to end after their current step, wait so long, then kill who is left."""
        for actor in list(self._actors):
            self._end(actor, lambda handle: handle.stop)
        deadline = time.monotonic() + seconds
        while self._actors and time.monotonic() < deadline:
            calls = [actor.awaited for actor in self._actors]
            ray.wait(calls, num_returns=len(calls), timeout=max(0.0, min(1.0, deadline - time.monotonic())))
            self.look()
        for actor in list(self._actors):
            self._failed(actor, f"did not end within {seconds:g} s and is killed")

    def _end(self, actor: _Actor, how: Callable[[Any], Any]) -> None:
        if actor.state in (ActorState.PLACING, ActorState.OPENING):
            self._drop(actor)
            return
        how(actor.handle).remote()
        actor.enter(ActorState.LEAVING, actor.awaited)


def _scheduling(where: Target) -> Any:
    if where.node is not None:
        return NodeAffinitySchedulingStrategy(where.node, soft=where.soft)
    return "SPREAD" if where.spread else "DEFAULT"


def _where(actor: _Actor) -> str:
    if actor.place is None:
        return "(none yet)"
    return f"{actor.place.node[:8]} ({actor.place.host}, process {actor.place.pid})"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
