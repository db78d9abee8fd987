"""Learning on a real Ray cluster of several nodes: nodes, actors and leases are lost, and no job is.

Leases last longer than any test. Where one has to run out the test says so in the job's row, so nothing here depends
on how quick the machine is.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ray_nodes import RayNodes
from sqlalchemy import update

from elm_agent.errors import JobError
from elm_agent.executors.ray import cluster
from elm_agent.executors.ray.crew import Crew
from elm_agent.records import JobRecord, JobState
from elm_agent.runtime import Runtime
from elm_agent.settings import Settings
from elm_agent.storage.sql.schema import JobRow
from elm_agent.testing.scripted import let_go, open_scripted_runtime, starts

pytestmark = pytest.mark.slow

FACTORY = "elm_agent.testing.scripted:open_scripted_runtime"
Opened = Callable[..., Runtime]


@pytest.fixture
def nodes(ray_cluster: RayNodes) -> Iterator[RayNodes]:
    ray_cluster.keep(2)
    yield ray_cluster
    ray_cluster.keep(2)


@pytest.fixture
def opened(nodes: RayNodes, tmp_path: Path) -> Iterator[Opened]:  # noqa: ARG001 - it connects this process
    made: list[Runtime] = []

    def opened(url: str | None = None, worker: dict[str, Any] | None = None, **ray: Any) -> Runtime:
        hurried = {"mode": "ray", "lease_seconds": 3600.0, "heartbeat_seconds": 600.0, "poll_seconds": 0.1}
        placed = {"factory": FACTORY, "idle_seconds": 0.3, "num_cpus": 0.5}
        settings = Settings(
            home=tmp_path, database_url=url, index="exact", worker=hurried | (worker or {}), ray=placed | ray
        )
        made.append(open_scripted_runtime(settings, owns_index=False))
        return made[-1]

    yield opened
    for runtime in made:
        runtime.close()


def ask(runtime: Runtime, question: str) -> JobRecord:
    job, _ = runtime.bank.jobs.enqueue(
        "default", question, task="math", model_id=runtime.model.fingerprint.id, recipe=runtime.recipe
    )
    runtime.runner.notify()
    return job


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 300  # a test that hangs ends here
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def begun(home: Path, job: JobRecord) -> list[int]:
    return [start.pid for start in starts(home) if start.question == job.question]


def node_of(runtime: Runtime, pid: int) -> str:
    places = [actor.place for actor in runtime.runner.status().actors if actor.place]  # type: ignore[attr-defined]
    return next(place.node for place in places if place.pid == pid)


def run_out(runtime: Runtime, job: JobRecord) -> None:
    """The lease of a worker that can say no more: its time has passed."""
    past = job.created_at - timedelta(days=1)
    with runtime.bank.database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job.id).values(lease_until=past))


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def done_once(runtime: Runtime, jobs: list[JobRecord]) -> None:
    """Every job is done, and has left exactly one memory."""
    assert {runtime.bank.jobs.get(job.namespace, job.id).state for job in jobs} == {JobState.DONE}
    memories = runtime.bank.memories("default")
    assert sorted(memory.job_id or "" for memory in memories) == sorted(job.id for job in jobs)


def test_a_node_is_lost_in_mid_training(
    opened: Opened, nodes: RayNodes, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = opened(database_url, strategy="STRICT_SPREAD", min_actors=2)
    held = [ask(runtime, f"[hold:{n}] on a node") for n in range(2)]
    jobs = held + [ask(runtime, f"What is {n}?") for n in range(6)]
    until(lambda: all(begun(tmp_path, job) for job in held), "both nodes to train")
    (first,), (second,) = (begun(tmp_path, job) for job in held)
    lost = node_of(runtime, first)
    assert lost != node_of(runtime, second)
    with caplog.at_level(logging.WARNING, logger="elm_agent.executors"):
        nodes.lose(lost)
        until(lambda: not alive(first), "the lost node's worker to end")
        run_out(runtime, held[0])
        let_go(tmp_path, "0")
        let_go(tmp_path, "1")
        assert runtime.runner.wait_idle(300)
        until(lambda: "died" in caplog.text, "Ray to miss the node, which may be after the last job")
    done_once(runtime, jobs)
    assert len(begun(tmp_path, held[0])) == 2
    assert begun(tmp_path, held[1]) == [second]
    (line,) = [record.message for record in caplog.records if "died" in record.message]
    assert lost[:8] in line
    assert "taken over when its lease runs out" in line


def test_a_frozen_actors_result_is_discarded(opened: Opened, tmp_path: Path) -> None:
    runtime = opened(min_actors=2)
    job = ask(runtime, "[hold:frozen] half-way")
    until(lambda: begun(tmp_path, job), "the training to begin")
    (frozen,) = begun(tmp_path, job)
    until(lambda: runtime.bank.jobs.get(job.namespace, job.id).progress, "the actor to be in no transaction")
    os.kill(frozen, signal.SIGSTOP)
    try:
        run_out(runtime, job)
        until(lambda: len(begun(tmp_path, job)) == 2, "another actor to take the job over")
        let_go(tmp_path, "frozen")
        assert runtime.runner.wait_idle(300)
        done = runtime.bank.jobs.get(job.namespace, job.id)
    finally:
        os.kill(frozen, signal.SIGCONT)
    runtime.close()  # waits for the thawed actor, which has now said all that it had to say
    assert done.attempts == 2
    later = opened(min_actors=0)
    assert later.bank.jobs.get(job.namespace, job.id) == done
    done_once(later, [job])


def test_as_many_actors_as_the_queue_is_deep(opened: Opened, tmp_path: Path) -> None:
    runtime = opened(min_actors=0, max_actors=2, jobs_per_actor=1)
    status = runtime.runner.status  # type: ignore[attr-defined]
    jobs = [ask(runtime, f"[hold:deep] {n}") for n in range(5)]
    until(lambda: sum(bool(begun(tmp_path, job)) for job in jobs) == 2, "two trainings at once")
    until(lambda: (status().jobs, status().wanted, len(status().actors)) == (5, 2, 2), "the most there may be")
    assert runtime.bank.jobs.counts()[JobState.QUEUED] == 3
    let_go(tmp_path, "deep")
    assert runtime.runner.wait_idle(300)
    until(lambda: not status().actors, "all actors to be let go")
    done_once(runtime, jobs)
    assert status().problem is None


def test_no_place_is_said_with_what_there_is(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    runtime = opened(num_gpus=0.25, place_seconds=0.5)
    ask(runtime, "q")
    with pytest.raises(JobError, match=r"no place for .*each wants CPU 0\.5, GPU 0\.25; .*its nodes: .*CPU 2, GPU 0"):
        runtime.runner.wait_idle(300)
    assert caplog.text.count("has had no place") == 1


def test_shares_of_a_gpu(opened: Opened, nodes: RayNodes, tmp_path: Path) -> None:
    """Ray counts the GPU that the node says it has; nothing here computes on one."""
    gpu = nodes.add(num_gpus=1)
    runtime = opened(num_gpus=0.5, min_actors=2)
    jobs = [ask(runtime, f"[hold:gpu] {n}") for n in range(2)]
    until(lambda: all(begun(tmp_path, job) for job in jobs), "two workers on one GPU")
    assert {node_of(runtime, *begun(tmp_path, job)) for job in jobs} == {gpu}
    let_go(tmp_path, "gpu")
    assert runtime.runner.wait_idle(300)
    nodes.lose(gpu)


def test_a_factory_that_fails_is_not_waited_for(opened: Opened, caplog: pytest.LogCaptureFixture) -> None:
    runtime = opened(factory="elm_agent.testing.scripted:no_such_function")
    ask(runtime, "q")
    with pytest.raises(JobError, match=r"failed while opening: SettingsError: ray\.factory .* cannot be imported"):
        runtime.runner.wait_idle(300)
    assert "failed while opening" in caplog.text


def test_a_node_that_is_gone_is_no_failure_of_an_actor(
    nodes: RayNodes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For a while a dead node looks alive to Ray, and replacements are sent to it."""
    gone = nodes.add()
    nodes.lose(gone)
    until(lambda: gone not in cluster.nodes(), "Ray to miss the node")
    crew = Crew(
        opening=(FACTORY, {}, "", None), num_cpus=0.5, num_gpus=0, strategy="STRICT_SPREAD", most=1, place_seconds=600
    )
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, logger="elm_agent.executors"):
        patch.setattr(cluster, "fitting", lambda _wanted: [gone])
        for _ in range(4):  # more often than failures in a row are taken for hopeless
            crew.hire(1)
            assert crew.staying == 1
            until(lambda: crew.look() or not crew.staying, "the actor to be given up")
    assert (crew.problem, crew.hopeless) == (None, False)
    assert caplog.text.count("is gone") == 4
    crew.hire(1)
    assert crew.staying == 1, "there is no pause: nothing failed"
    crew.dismiss(0)


# --- a cluster of one's own, by commands ---------------------------------------------------------------------

COMMAND = """
import elm_agent.runtime
from elm_agent.testing.scripted import open_scripted_runtime

real = elm_agent.runtime.open_runtime
def opened(settings, **more):
    elm_agent.runtime.open_runtime = real
    return open_scripted_runtime(settings, **more)
elm_agent.runtime.open_runtime = opened

from elm_agent.cli import main
main()
"""


def command(home: Path, *words: str) -> subprocess.Popen[str]:
    """``elm-agent`` with the scripted trainer, here and on Ray."""
    settings = {"ELM_WORKER__MODE": "ray", "ELM_RAY__FACTORY": FACTORY, "ELM_INDEX": "exact", "ELM_MODEL": "fake"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words, "--home", str(home)],
        env={**os.environ, **settings, "RAY_ADDRESS": "local", "ELM_RAY__MIN_ACTORS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_worker_command_on_a_cluster_of_its_own(tmp_path: Path) -> None:
    with open_scripted_runtime(Settings(home=tmp_path, index="exact", worker={"mode": "external"})) as runtime:
        job, held = ask(runtime, "What is 9?"), ask(runtime, "[hold:command] for long")
        process = command(tmp_path, "worker", "--json")
        until(lambda: runtime.bank.jobs.get(job.namespace, job.id).state is JobState.DONE, "the first job to be done")
        until(lambda: begun(tmp_path, held), "the second job to begin")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 130, err
        told = [json.loads(line) for line in out.splitlines()]
        assert "ray.status" in [line.get("event") for line in told]
        back = runtime.bank.jobs.get(held.namespace, held.id)
        assert (back.state, back.attempts) == (JobState.QUEUED, 0)
        let_go(tmp_path, "command")
        process = command(tmp_path, "worker", "--once")
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert "1 workers wanted: learner 1 working" in out
        done_once(runtime, [job, held])
