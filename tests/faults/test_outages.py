"""A disk is full or read-only, a database is locked, its server dies, an index server dies: all while an agent works.

The answer is given all the same, what was queued is kept, and learnt when the trouble is over.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from postgres import NoServer, _as_ordinary_user, _free_port, _run, server_binaries
from servers import KeptChroma
from small_disks import fill, small_disk
from sqlalchemy import event

from elm_agent import Runtime, open_runtime
from elm_agent.errors import StorageError
from elm_agent.integrations.langgraph import build_graph
from elm_agent.records import JobState
from elm_agent.storage.health.doctor import examine
from elm_agent.testing.doubles import FakeModel, FakeTrainer, FixedVerifier

BEFORE, DURING, AFTER = "What is 7 times 8?", "What is 7 times 9?", "What is 7 times 6?"


@contextmanager
def agent(home: Path, **settings: Any) -> Iterator[Runtime]:
    """An agent that answers "1" without a memory; learning is left to workers."""
    worker = {"mode": "external", "lease_seconds": 2, "heartbeat_seconds": 1}
    chosen = {"home": home, "index": "exact", "worker": worker}
    reply = lambda _text, memory_id: "\\boxed{2}" if memory_id else "\\boxed{1}"  # noqa: E731
    with open_runtime(
        model=FakeModel(reply=reply), trainer=FakeTrainer(), verifier=FixedVerifier(), **chosen | settings
    ) as runtime:
        yield runtime


def ask(runtime: Runtime, question: str) -> dict[str, Any]:
    answer: dict[str, Any] = build_graph(runtime).invoke({"question": question})
    return answer


def work_off(runtime: Runtime) -> None:
    """Let a worker do what there is to do, waiting for leases of those who stopped without a word."""
    until = time.monotonic() + 300
    worker = runtime.worker()
    while not worker.idle():
        assert time.monotonic() < until
        worker.run(once=True)
        time.sleep(0.1)


def check_learnt(runtime: Runtime, *questions: str) -> None:
    work_off(runtime)
    states = {job.question: job.state for job in runtime.bank.jobs.list()}
    assert states == dict.fromkeys(questions, JobState.DONE)
    memories = runtime.bank.memories(runtime.settings.namespace)
    assert sorted(memory.question for memory in memories) == sorted(questions), "each learnt once"
    assert examine(runtime.bank, repair=True).left == ()
    assert ask(runtime, questions[0])["route"] == "memory"


def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=2048) as disk, agent(disk) as runtime:
        assert ask(runtime, BEFORE)["answer"] == "1"
        filler = fill(disk)
        kept = [BEFORE]
        for n in range(200):  # until the database has to grow
            question = f"What is {n} and {'many words ' * 250}?"
            during = ask(runtime, question)
            assert during["answer"] == "1"
            if during["job_id"] is None:
                break
            kept.append(question)
        assert during["job_id"] is None, "the disk was never full"
        filler.unlink()
        check_learnt(runtime, *kept)


def test_a_database_that_became_read_only(tmp_path: Path) -> None:
    with agent(tmp_path) as runtime:
        ask(runtime, BEFORE)
        work_off(runtime)
    with agent(tmp_path) as runtime:
        ask(runtime, DURING)
        with _read_only(runtime):
            during = ask(runtime, AFTER)
            assert (during["answer"], during["job_id"]) == ("2", None), "memories are still found and used"
        check_learnt(runtime, BEFORE, DURING)


@contextmanager
def _read_only(runtime: Runtime) -> Iterator[None]:
    """Every connection of this bank refuses to write, as on a disk that was remounted."""

    def refuse(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA query_only = ON")

    engine = runtime.bank.database.engine
    event.listen(engine, "connect", refuse)
    engine.dispose()
    try:
        yield
    finally:
        event.remove(engine, "connect", refuse)
        engine.dispose()


def test_a_locked_database(tmp_path: Path) -> None:
    with agent(tmp_path) as runtime:
        ask(runtime, BEFORE)
        locked, free = threading.Event(), threading.Event()

        def hold() -> None:
            other = sqlite3.connect(tmp_path / "elm.sqlite", isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            locked.set()
            free.wait(2)
            other.execute("COMMIT")
            other.close()

        holder = threading.Thread(target=hold)
        holder.start()
        locked.wait()
        assert ask(runtime, DURING)["answer"] in ("1", "2")
        holder.join()
        check_learnt(runtime, BEFORE, DURING)


# --- servers ------------------------------------------------------------------------------------------------------


class KeptPostgres:
    """A server that can be stopped in the middle of everything, and started again on what it has."""

    def __init__(self, folder: Path) -> None:
        as_user, binaries = _as_ordinary_user(), server_binaries()
        if as_user:
            shutil.chown(folder, "postgres")
        port, data = _free_port(), folder / "data"
        self.url = f"postgresql+psycopg://elm@127.0.0.1:{port}/postgres"
        _run([*as_user, binaries / "initdb", "-D", data, "-U", "elm", "-A", "trust", "-E", "UTF8", "--no-sync"])
        self._control = [*as_user, binaries / "pg_ctl", "-D", data, "-w"]
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
        self._start = [*self._control, "-l", folder / "log", "-o", options, "start"]
        self.start()

    def start(self) -> None:
        _run(self._start)

    def kill(self) -> None:
        _run([*self._control, "-m", "immediate", "stop"])


@pytest.fixture
def postgres() -> Iterator[KeptPostgres]:
    with tempfile.TemporaryDirectory(prefix="elm-kept-") as name:
        try:
            server = KeptPostgres(Path(name))
        except NoServer as error:
            pytest.skip(str(error))
        yield server
        server.kill()


@pytest.mark.postgres
def test_a_database_server_that_dies(postgres: KeptPostgres, tmp_path: Path) -> None:
    with agent(tmp_path, database_url=postgres.url) as runtime:
        first = ask(runtime, BEFORE)
        postgres.kill()
        during = ask(runtime, DURING)
        assert (during["answer"], during["route"], during["job_id"]) == ("1", "failed_memory", None)
        assert "cannot be reached" in during["reason"]
        postgres.start()
        assert runtime.bank.jobs.get("default", first["job_id"]).state is JobState.QUEUED, "what was queued is kept"
        ask(runtime, AFTER)
        check_learnt(runtime, BEFORE, AFTER)


@pytest.mark.postgres
@pytest.mark.parametrize("step", ["train.step", "tensor.durable", "publish.before_commit", "publish.committed"])
def test_a_database_server_that_dies_while_a_memory_is_made(
    postgres: KeptPostgres, tmp_path: Path, step: str
) -> None:
    with agent(tmp_path, database_url=postgres.url) as runtime:
        ask(runtime, BEFORE)
        killed: list[str] = []

        def observe(name: str, _detail: dict[str, Any]) -> None:
            if name == step and not killed:
                killed.append(name)
                postgres.kill()

        worker = runtime.worker(observe=observe)
        with suppress(StorageError):  # where it cannot even look for the next job
            worker.run(once=True)
        assert killed == [step]
        postgres.start()
        check_learnt(runtime, BEFORE)


@pytest.mark.slow
def test_an_index_server_that_dies(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    server = KeptChroma(tmp_path / "server" / "data")
    try:
        server.start()
    except NoServer as error:
        pytest.skip(str(error))
    try:
        with agent(tmp_path / "home", index=server.index) as runtime:
            ask(runtime, BEFORE)
            work_off(runtime)
            assert ask(runtime, DURING)["route"] == "memory"
            server.kill()
            down = ask(runtime, AFTER)
            assert down["answer"] in ("1", "2")
            assert down["job_id"] is not None, "jobs do not need the index"
            work_off(runtime)
            server.start()
            check_learnt(runtime, BEFORE, DURING, AFTER)
    finally:
        server.kill()
