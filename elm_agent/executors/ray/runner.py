"""A ``JobRunner`` that keeps as many workers on a Ray cluster as the queue is deep. Trains nothing itself.

Jobs never pass through Ray: each actor claims its own from the database, with lease and fence, as any worker does.
So an actor, a node or this process may be lost at any time; what they had is taken over when the lease runs out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from elm_agent.errors import JobError, StorageError
from elm_agent.executors.ray import cluster
from elm_agent.executors.ray.crew import ActorStatus, Crew
from elm_agent.executors.ray.placing import Strategy
from elm_agent.memory.runners import wait_until

if TYPE_CHECKING:
    from elm_agent.storage.queue.jobs import JobQueue

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RayStatus:
    """``jobs``: due or running. ``wanted``: actors for them. ``problem``: why there are fewer, or none that works."""

    actors: tuple[ActorStatus, ...] = ()
    jobs: int = 0
    wanted: int = 0
    problem: str | None = None


class RayRunner:
    """See the module. Not restarted once stopped.

    Args:
        jobs, model_id, tasks: the queue, and which of its jobs are counted.
        factory, settings: ``MODULE:FUNCTION`` that an actor calls as ``function(Settings(**settings),
            owns_index=False)``; what it returns has ``model``, ``worker()`` and ``close()``, as a ``Runtime``.
        only_host: actors of other hosts are refused, because the bank is in files of this one.
        address, dashboard: see ``cluster.connect``.
        min_actors, max_actors, jobs_per_actor: one actor for so many jobs, within these bounds.
        num_cpus, num_gpus, strategy: what is reserved for an actor, and how actors are placed.
        poll_seconds: how often queue and actors are looked at.
        place_seconds: a worker without a place for this long is a problem.
        idle_seconds: actors that were too many for so long are let go, after their job.
        stop_seconds: how long ``stop`` waits for training steps to end before it kills.
    """

    def __init__(
        self,
        *,
        jobs: JobQueue,
        model_id: str,
        factory: str,
        settings: Mapping[str, Any],
        tasks: Collection[str] | None = None,
        only_host: str | None = None,
        address: str | None = None,
        dashboard: bool = False,
        min_actors: int = 1,
        max_actors: int = 2,
        jobs_per_actor: int = 2,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
        strategy: Strategy = "SPREAD",
        poll_seconds: float = 0.5,
        place_seconds: float = 60.0,
        idle_seconds: float = 30.0,
        stop_seconds: float = 120.0,
    ) -> None:
        self._jobs = jobs
        self._model_id = model_id
        self._tasks = tasks
        self._address = address
        self._dashboard = dashboard
        self._min_actors = min_actors
        self._max_actors = max_actors
        self._jobs_per_actor = jobs_per_actor
        self._poll_seconds = poll_seconds
        self._idle_seconds = idle_seconds
        self._stop_seconds = stop_seconds
        self._make_crew = partial(
            Crew,
            opening=(factory, dict(settings), model_id, only_host),
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            strategy=strategy,
            most=max_actors,
            place_seconds=place_seconds,
        )
        self._status = RayStatus()
        self._nobody_works = False
        self._error: BaseException | None = None
        self._starting = threading.Lock()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Connect, and keep the crew from now on. Raises ``JobError`` when there is no cluster."""
        with self._starting:
            if self._thread is None and not self._stopping.is_set():
                ours = cluster.connect(self._address, dashboard=self._dashboard)
                self._thread = threading.Thread(target=self._run, args=(ours,), name="elm-ray", daemon=True)
                self._thread.start()

    def notify(self) -> None:
        self._wake.set()

    def status(self) -> RayStatus:
        """As of the last look, at most a few ``poll_seconds`` ago."""
        return self._status

    def wait_idle(self, timeout: float | None = None) -> bool:
        """See ``JobRunner``. Raises ``JobError`` when nobody works and there is a reason why nobody will."""

        def idle() -> bool:
            if self._jobs.idle(self._model_id, self._tasks):
                return True
            if self._thread is None or not self._thread.is_alive():
                raise JobError("jobs are waiting, but nobody looks after the workers on Ray") from self._error
            if self._nobody_works:
                raise JobError(f"jobs are waiting, but no worker on Ray can do them: {self._status.problem}")
            return False

        return wait_until(idle, timeout)

    def stop(self) -> None:
        """See ``JobRunner``; steps longer than ``stop_seconds`` are killed, and their leases run out."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # --- the thread that looks after the crew ----------------------------------------------------------------

    def _run(self, ours: bool) -> None:
        crew = self._make_crew()
        try:
            self._look_after(crew)
        except BaseException as error:  # kept for whoever waits; the thread's own hook reports it as well
            self._error = error
            raise
        finally:
            crew.dismiss(self._stop_seconds)
            self._status = RayStatus(crew.status())
            if ours:
                cluster.disconnect()

    def _look_after(self, crew: Crew) -> None:
        enough_since: float | None = None
        jobs = 0
        while not self._stopping.is_set():
            crew.look()
            try:
                jobs = self._jobs.depth(self._model_id, self._tasks)
            except StorageError as error:
                logger.warning("the queue could not be asked how deep it is, will look again: %s", error)
            wanted = self._wanted(jobs)
            crew.hire(wanted)
            enough_since = (enough_since or time.monotonic()) if crew.staying > wanted else None
            if enough_since is not None and time.monotonic() - enough_since >= self._idle_seconds:
                crew.let_go(wanted)
            self._status = RayStatus(crew.status(), jobs, wanted, crew.problem)
            self._nobody_works = crew.hopeless and not crew.working
            self._wake.wait(self._poll_seconds)
            self._wake.clear()

    def _wanted(self, jobs: int) -> int:
        return min(self._max_actors, max(self._min_actors, -(-jobs // self._jobs_per_actor)))
