"""The S3 server dies in mid-operation: the answer is given, the job is kept, and later completed."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from s3 import S3Server, temporary_s3
from sqlalchemy import update

from elm_agent import JobState, Runtime, open_runtime
from elm_agent.errors import StorageError, TensorMissing
from elm_agent.integrations.langgraph import build_graph
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.sql.schema import JobRow
from elm_agent.testing.doubles import FakeModel, FakeTrainer, FixedVerifier

pytestmark = pytest.mark.s3

FIRST, SECOND = {"question": "What is 7 times 8?"}, {"question": "What is 7 times 9?"}


@pytest.fixture
def server(s3_server: S3Server) -> Iterator[S3Server]:
    """A server of its own, since it is killed; its credentials are those of the session's."""
    assert s3_server.endpoint
    with temporary_s3() as started:
        yield started


@pytest.fixture
def opened(server: S3Server, tmp_path: Path) -> Iterator[Callable[..., Runtime]]:
    runtimes: list[Runtime] = []
    url = server.new_url()

    def open_(observe: Any = None) -> Runtime:
        runtime = open_runtime(
            model=FakeModel(reply=lambda _prompt, memory: "\\boxed{2}" if memory else "\\boxed{1}"),
            trainer=FakeTrainer(),
            verifier=FixedVerifier(),
            observe=observe,
            home=tmp_path,
            index="exact",
            tensors=url,
            tensor_options={"endpoint_url": server.endpoint},
            worker={"mode": "inline", "backoff_seconds": 3600.0, "max_attempts": 5},
        )
        runtimes.append(runtime)
        return runtime

    yield open_
    for runtime in runtimes:
        runtime.close()


def test_the_server_dies_between_training_and_storing(
    server: S3Server, opened: Callable[..., Runtime], tmp_path: Path
) -> None:
    def kill(step: str, _detail: dict[str, Any]) -> None:
        if step == "tensor.temporary" and dying:
            server.kill()

    dying: list[bool] = []
    runtime = opened(kill)
    graph = build_graph(runtime)
    assert graph.invoke(FIRST)["route"] == "no_memory"
    assert graph.invoke(SECOND)["route"] == "memory", "now a copy of the first memory is on this machine"

    dying.append(True)
    out = graph.invoke({"question": "What is 3 times 3?"})
    assert out["answer"] == "2", "from the memory whose copy is on this machine"
    job = runtime.bank.jobs.get("default", out["job_id"])
    assert job.state is JobState.QUEUED
    assert "could not be stored in s3://" in (job.reason or "")
    assert "check that the server is up" in (job.reason or "")
    assert len(runtime.bank.memories("default")) == 2

    shutil.rmtree(tmp_path / "cache")
    with opened() as fresh:  # nothing of the memories in this process or on this machine
        out = build_graph(fresh).invoke({"question": "What is 4 times 4?"})
        assert (out["answer"], out["route"]) == ("1", "failed_memory")
        assert "could not be read in s3://" in out["reason"]
        assert fresh.bank.jobs.get("default", out["job_id"]).state is JobState.QUEUED
        report = examine(fresh.bank, repair=True)
        assert (report.findings, report.incomplete) == ((), True)
        (skipped,) = report.skipped
        assert skipped.startswith("the tensors, and what only they prove: ")
        assert "check that the server is up" in skipped
        assert report.checked["memories"] == 2
        assert report.checked["events"] > 0
        states = [memory.state.value for memory in fresh.bank.memories("default")]
        assert states == ["active", "active"], "what cannot be asked is not lost"

    dying.clear()
    server.start()
    _work_off(runtime)
    assert runtime.bank.jobs.get(job.namespace, job.id).state is JobState.DONE
    assert len(runtime.bank.memories("default")) == 4
    assert graph.invoke({"question": "What is 3 times 3?"})["route"] == "memory"
    report = examine(runtime.bank)
    assert report.clean, report.findings


def _work_off(runtime: Runtime) -> None:
    until = time.monotonic() + 120
    while any(job.state is not JobState.DONE for job in runtime.bank.jobs.list("default")):
        assert time.monotonic() < until, [job.reason for job in runtime.bank.jobs.list("default")]
        with runtime.bank.database.write() as session:  # the pause before another attempt is over
            session.execute(update(JobRow).values(run_after=JobRow.created_at))
        runtime.worker().run(once=True)


def test_a_server_that_is_killed_among_puts_and_gets_keeps_what_it_acknowledged(
    server: S3Server, opened: Callable[..., Runtime]
) -> None:
    store = opened().bank.tensors
    acknowledged: list[str] = []

    def work() -> None:
        for n in range(10_000):
            try:
                acknowledged.append(store.put("default", f"tensor {n}".encode()))
            except StorageError:
                return

    writers = [threading.Thread(target=work) for _ in range(3)]
    for writer in writers:
        writer.start()
    until = time.monotonic() + 300
    while len(acknowledged) < 40:
        assert time.monotonic() < until
        time.sleep(0.01)
    server.kill()
    for writer in writers:
        writer.join(120)
    server.start()
    found = _eventually(lambda: {digest: store.get("default", digest, cached=False) for digest in set(acknowledged)})
    assert {data.split()[0] for data in found.values()} == {b"tensor"}
    assert set(acknowledged) <= set(store.digests("default"))


def _eventually(ask: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    """The answer of a server that is still finding its volumes."""
    until = time.monotonic() + 300
    while True:
        try:
            return ask()
        except TensorMissing:
            raise
        except StorageError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
