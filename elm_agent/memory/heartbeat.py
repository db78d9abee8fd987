"""Keep a lease alive while its job is trained, and hear what the queue has to say. Decides nothing."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

from elm_agent.errors import LeaseLost, StorageError

if TYPE_CHECKING:
    from elm_agent.storage.queue.jobs import JobQueue, Lease

logger = logging.getLogger(__name__)


class Heartbeat:
    """Inside ``with``, beats every ``every_seconds`` from a thread of its own; ``beat`` adds one with progress.

    ``lost``: another worker has the job. ``cancel_requested``: somebody asked it to stop. Both stay true.
    """

    def __init__(self, jobs: JobQueue, lease: Lease, *, lease_seconds: float, every_seconds: float) -> None:
        self.lost = False
        self.cancel_requested = False
        self._jobs = jobs
        self._lease = lease
        self._lease_seconds = lease_seconds
        self._every_seconds = every_seconds
        self._beating = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"elm-heartbeat-{lease.job.id}", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def beat(self, progress: dict[str, Any] | None = None) -> None:
        """One sign of life. A store that cannot be reached is logged: the lease may well outlast it."""
        with self._beating:
            if self.lost or self._ended.is_set():
                return
            job = self._lease.job
            try:
                asked = self._jobs.heartbeat(self._lease, lease_seconds=self._lease_seconds, progress=progress)
            except LeaseLost as error:
                self.lost = True
                logger.info("job %s: %s", job.id, error, extra={"job_id": job.id, "namespace": job.namespace})
            except StorageError as error:
                ids = {"job_id": job.id, "namespace": job.namespace}
                logger.warning("job %s: no heartbeat, %s", job.id, error, extra=ids)
            else:
                self.cancel_requested = self.cancel_requested or asked

    def _run(self) -> None:
        while not self._ended.wait(self._every_seconds):
            self.beat()
