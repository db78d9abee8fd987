"""Our own executors, judged by the suite that we ship: in the caller, in a thread, in processes, on Ray."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from elm_agent.protocols import JobRunner
from elm_agent.settings import Settings
from elm_agent.testing.conformance import ExecutorCapability, JobExecutorSuite
from elm_agent.testing.conformance_jobs import Bench, Opened
from elm_agent.testing.scripted import open_scripted_runtime

BACKGROUND, PARALLEL, KILLABLE = ExecutorCapability


@contextmanager
def opened_as(settings: Settings, mode: str, **more: object) -> Iterator[JobRunner]:
    with open_scripted_runtime(settings.changed(worker={"mode": mode}, **more), owns_index=False) as runtime:
        yield runtime.runner


class TestInlineRunner(JobExecutorSuite):
    @pytest.fixture(scope="class")
    def opened(self) -> Opened:
        return lambda settings: opened_as(settings, "inline")


class TestThreadRunner(JobExecutorSuite):
    capabilities = frozenset({BACKGROUND})

    @pytest.fixture(scope="class")
    def opened(self) -> Opened:
        return lambda settings: opened_as(settings, "thread")


WORKER = """
import signal, sys
from elm_agent.settings import Settings
from elm_agent.testing.scripted import open_scripted_runtime

with open_scripted_runtime(Settings.model_validate_json(sys.argv[1]), owns_index=False) as runtime:
    worker = runtime.worker()
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.run()
"""


class TestExternalRunner(JobExecutorSuite):
    """Two processes do the work."""

    capabilities = frozenset({BACKGROUND, PARALLEL, KILLABLE})
    slots = 2
    processes: dict[Path, list[subprocess.Popen[bytes]]]

    @pytest.fixture(scope="class")
    def opened(self) -> Opened:
        type(self).processes = {}

        @contextmanager
        def opened(settings: Settings) -> Iterator[JobRunner]:
            external = settings.changed(worker={"mode": "external"})
            with opened_as(settings, "external") as runner:
                ours = [
                    subprocess.Popen([sys.executable, "-c", WORKER, external.model_dump_json()]) for _ in range(2)
                ]
                self.processes.setdefault(settings.home, []).extend(ours)
                yield runner
                _terminate(ours)

        return opened

    def stop(self, bench: Bench) -> None:
        bench.runner.stop()
        _terminate(self.processes[bench.home])


def _terminate(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        assert process.wait(60) in (0, -signal.SIGKILL, -signal.SIGTERM)


@pytest.mark.slow
class TestRayRunner(JobExecutorSuite):
    """Two actors on a cluster of two nodes, all on this machine."""

    capabilities = frozenset({BACKGROUND, PARALLEL, KILLABLE})
    slots = 2

    @pytest.fixture(scope="class")
    def opened(self, ray_cluster: object) -> Opened:  # noqa: ARG002 - the runner connects to what is connected
        def opened(settings: Settings) -> AbstractContextManager[JobRunner]:
            ray = {"factory": "elm_agent.testing.scripted:open_scripted_runtime", "min_actors": 2, "num_cpus": 0.5}
            return opened_as(settings, "ray", ray=ray)

        return opened
