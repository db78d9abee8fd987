"""What runs inside one actor: a runtime that is opened once, and a worker on it. Knows nothing of other actors."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from elm_agent.errors import JobError, SettingsError
from elm_agent.settings import Settings

if TYPE_CHECKING:
    from elm_agent.memory.worker import Worker


@dataclass(frozen=True, slots=True)
class Place:
    """Where an actor runs: Ray's id of the node, the host's name, the process."""

    node: str
    host: str
    pid: int


class Learner:
    """Made by Ray with several threads, so that ``stop`` is heard while ``run`` works."""

    def __init__(self) -> None:
        self._runtime: Any = None
        self._worker: Worker | None = None

    def where(self) -> Place:
        """Answers as soon as the actor has a place."""
        return Place(ray.get_runtime_context().get_node_id(), socket.gethostname(), os.getpid())

    def open(self, factory: str, settings: Mapping[str, Any], model_id: str, only_host: str | None) -> None:
        """Open the runtime, model included. Raises ``JobError`` when it would work on another bank or model."""
        if only_host not in (None, socket.gethostname()):
            raise JobError(
                f"the bank lies in files of host {only_host!r}, this worker runs on {socket.gethostname()!r}: set "
                "database_url to a PostgreSQL server, and tensors to a folder or object store that all hosts share"
            )
        self._runtime = load(factory)(_counted(Settings(**settings)), owns_index=False)
        found = self._runtime.model.fingerprint
        if found.id != model_id:
            raise JobError(f"this worker has model {found.name!r} ({found.id[:19]}), the jobs want {model_id[:19]}")
        self._worker = self._runtime.worker()

    def run(self) -> int:
        """Work until told to end; the number of jobs taken."""
        assert self._worker is not None
        try:
            return self._worker.run()
        finally:
            self._runtime.close()

    def stop(self) -> None:
        """End after the current step; the job goes back to the queue."""
        assert self._worker is not None
        self._worker.stop()

    def finish(self) -> None:
        """End after the current job."""
        assert self._worker is not None
        self._worker.finish()


def _counted(settings: Settings) -> Settings:
    """No more jobs at the same time than the crew counts to each actor: the others are for actors that still open."""
    together = min(settings.worker.concurrency, settings.ray.jobs_per_actor)
    return settings.changed(worker={"concurrency": together})


def load(path: str) -> Any:
    """The function that ``MODULE:FUNCTION`` names. Raises ``SettingsError``."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"ray.factory {path!r} cannot be imported ({error}): expected MODULE:FUNCTION") from None
    if not callable(found):
        raise SettingsError(f"ray.factory {path!r} is a {type(found).__name__}: expected a function")
    return found
