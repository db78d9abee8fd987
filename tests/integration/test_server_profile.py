"""The shipped profiles at work as they are shipped: only the environment says where the servers and the model are."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from s3 import S3Server
from sqlalchemy import make_url

from elm_agent import JobState, Runtime, open_runtime
from elm_agent.integrations.langgraph import build_graph
from elm_agent.records import MemoryRecord
from elm_agent.runtime import open_bank
from elm_agent.settings import load_settings
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.indexes.chroma import ChromaIndex
from elm_agent.storage.indexes.chroma_server import ChromaServerIndex
from elm_agent.storage.indexes.pgvector import PgvectorIndex
from elm_agent.storage.ledger.chain import verify
from elm_agent.storage.tensors.remote import FsspecTensors
from elm_agent.testing.tiny import write_tiny_model

PROFILES = Path(__file__).parents[2] / "storage" / "profiles"
FIRST, SECOND = "What is 7 times 8?", "What is 7 times 9?"
SMALL = {  # a random model of some kilobytes, and as little work as it can learn from
    "ELM_DEVICE": "cpu",
    "ELM_THREADS": "1",
    "ELM_TASK": "text",  # whatever it says is an answer
    "ELM_MAX_NEW_TOKENS": "4",
    "ELM_LEARNING__STEPS": "1",
    "ELM_LEARNING__ROLLOUTS": "2",
    "ELM_LEARNING__VIRTUAL_TOKENS": "2",
    "ELM_LEARNING__MAX_NEW_TOKENS": "4",
    "ELM_WORKER__POLL_SECONDS": "0.05",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def environment(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("ELM_") and not name.startswith("ELM_TEST_")]:
        monkeypatch.delenv(name)
    for name, value in (SMALL | {"ELM_MODEL": str(tiny), "ELM_HOME": str(tmp_path / "agent")}).items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def servers(environment: pytest.MonkeyPatch, pgvector_url: str, s3_server: S3Server) -> pytest.MonkeyPatch:
    """Of ``server.toml``, by the variables that it names, the bucket and the endpoint."""
    url = make_url(pgvector_url).set(drivername="postgresql").render_as_string(hide_password=False)
    environment.setenv("ELM_DATABASE_URL", url)
    environment.setenv("ELM_TENSORS", s3_server.new_url())
    environment.setenv("ELM_TENSOR_OPTIONS__ENDPOINT_URL", s3_server.endpoint)
    return environment


def work(profile: str, home: Path) -> str:
    """A worker: the command, in a process and with a home of its own, as on another machine."""
    command = ["-m", "elm_agent.cli", "--settings", str(PROFILES / profile), "worker", "--once"]
    done = subprocess.run(
        [sys.executable, *command], env=os.environ | {"ELM_HOME": str(home)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def asked_and_learned(runtime: Runtime, worker_home: Path | None) -> MemoryRecord:
    """The first question is answered and queued, somebody learns it, and its memory is found for the second."""
    graph, bank = build_graph(runtime), runtime.bank
    first, said = graph.invoke({"question": FIRST}), ""
    assert first["route"] == "no_memory"
    if worker_home is None:
        assert runtime.runner.wait_idle(60)
    else:
        assert [job.state for job in bank.jobs.list("default")] == [JobState.QUEUED], "nobody learns here"
        said = work("server.toml", worker_home)
    [job] = bank.jobs.list("default")
    assert (job.id, job.state, job.reason, job.attempts) == (first["job_id"], JobState.DONE, None, 1), said
    [memory] = bank.memories("default")
    second = graph.invoke({"question": SECOND})
    assert second["memory_id"] == memory.id
    assert second["route"] in ("agreed", "memory", "zero_shot")
    return memory


def check_clean(runtime: Runtime) -> None:
    report = examine(runtime.bank)
    assert (report.findings, report.skipped) == ((), ())
    assert verify(runtime.bank.database, "default").broken is None


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.s3
@pytest.mark.parametrize("index", ["exact", "pgvector", "chroma"])
def test_an_agent_and_a_worker_on_the_server_profile(
    index: str, servers: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if index == "chroma":
        servers.setenv("ELM_INDEX", request.getfixturevalue("chroma_server").index)
    elif index != "exact":  # that is how it is shipped
        servers.setenv("ELM_INDEX", index)
    settings = load_settings(PROFILES / "server.toml")
    assert settings.worker.mode == "external"
    with open_runtime(settings) as runtime:
        bank = runtime.bank
        assert isinstance(bank.tensors, FsspecTensors)
        kinds = {"exact": type(None), "pgvector": PgvectorIndex, "chroma": ChromaServerIndex}
        assert type(bank.durable) is kinds[index]
        memory = asked_and_learned(runtime, tmp_path / "worker")
        assert list(bank.tensors.digests("default")) == [memory.tensor_digest]
        copies = [path.name for path in (tmp_path / "agent" / "cache").rglob("*.safetensors")]
        assert len(copies) == 1, "this machine keeps a copy of what it used"
        assert not list((tmp_path / "agent").rglob("*.sqlite"))
        check_clean(runtime)
    with closing(open_bank(settings)) as again:
        assert [one.question for one in again.memories("default")] == [FIRST]


@pytest.mark.parametrize("index", ["auto", "exact", "chroma"])
def test_the_local_profile(index: str, environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if index != "auto":  # that is how it is shipped
        environment.setenv("ELM_INDEX", index)
    settings = load_settings(PROFILES / "local.toml")
    assert settings.worker.mode == "thread"
    with open_runtime(settings) as runtime:
        bank = runtime.bank
        assert (type(bank.durable), bank.uses_durable()) == {
            "auto": (ChromaIndex, True),
            "exact": (type(None), False),
            "chroma": (ChromaIndex, True),
        }[index]
        asked_and_learned(runtime, None)
        assert runtime.runner.wait_idle(60)
        check_clean(runtime)
    assert (tmp_path / "agent" / "elm.sqlite").exists(), "everything is under one folder"
    with closing(open_bank(settings)) as again:
        assert {one.question for one in again.memories("default")} == {FIRST, SECOND}
