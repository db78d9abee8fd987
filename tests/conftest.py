"""Fixtures for all tests: every test that takes ``database_url`` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each process, before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import s3
from forks import forks
from postgres import NoServer, fresh_database, temporary_cluster
from ray_nodes import RayNodes, ray_nodes
from servers import KeptChroma, pgvector_binaries

from elm_agent.models.pull import is_pulled
from elm_agent.storage.sql.database import Database

hypothesis.settings.register_profile("elm", deadline=None)  # machines may be slow
hypothesis.settings.load_profile("elm")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, whose children would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each file to one of the processes, in order, and what uses Ray to the same: a cluster is a dozen processes."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if Path(file).name in ("test_job_executors.py", "test_ray.py", "test_ray_model.py") else file

    config.option.loadscopereorder = False  # what takes longest comes first as it is
    return Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of the embedded model where it is not in the cache: tests fetch nothing."""
    marked = [item for item in items if item.get_closest_marker("model")]
    if marked and not is_pulled("smollm2-135m"):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="not in the cache: run `elm-agent models pull` first"))


@pytest.fixture(scope="session")
def fork_server() -> None:
    """Start the warm server for whoever only asks for a process of the start method "forkserver"."""
    forks()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a server: the one that ELM_TEST_POSTGRES names, or a private one for this session."""
    if given := os.environ.get("ELM_TEST_POSTGRES"):
        yield given
        return
    try:
        with temporary_cluster() as url:
            yield url
    except NoServer as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def pgvector_server() -> Iterator[str]:
    """URL of a PostgreSQL server with pgvector: that of ELM_TEST_PGVECTOR, or a private one for this session."""
    if given := os.environ.get("ELM_TEST_PGVECTOR"):
        yield given
        return
    try:
        with temporary_cluster(pgvector_binaries()) as url:
            yield url
    except NoServer as error:
        pytest.skip(str(error))


@pytest.fixture
def pgvector_url(pgvector_server: str) -> Iterator[str]:
    """URL of an empty database on a server with pgvector."""
    with fresh_database(pgvector_server) as url:
        yield url


@pytest.fixture(scope="session")
def chroma_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeptChroma]:
    """A Chroma server for this session; a test that kills one makes its own."""
    server = KeptChroma(tmp_path_factory.mktemp("chroma-server") / "data")
    try:
        server.start()
    except NoServer as error:
        pytest.skip(str(error))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def qdrant_server() -> str:
    """The ``index`` setting of the Qdrant server that ELM_TEST_QDRANT names (http://HOST:PORT)."""
    if not (given := os.environ.get("ELM_TEST_QDRANT")):
        pytest.skip("no package has the Qdrant server's program: set ELM_TEST_QDRANT to http://HOST:PORT of one")
    return f"qdrant+{given}"


@pytest.fixture(scope="session")
def sqlite_schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty bank at the newest schema, to be copied: making one runs every migration."""
    path = tmp_path_factory.mktemp("schema") / "bank.sqlite"
    Database.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def postgres_schema(postgres_server: str) -> Iterator[str]:
    """As ``sqlite_schema``, on PostgreSQL."""
    with fresh_database(postgres_server) as url:
        Database.open(url).close()
        yield url


BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(params=BOTH)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database at the newest schema, without a row."""
    if request.param == "sqlite":
        path = tmp_path / "bank.sqlite"
        shutil.copyfile(request.getfixturevalue("sqlite_schema"), path)
        yield f"sqlite:///{path}"
        return
    template = request.getfixturevalue("postgres_schema")
    with fresh_database(request.getfixturevalue("postgres_server"), template=template) as url:
        yield url


@pytest.fixture(params=BOTH)
def bare_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database, without a schema."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'bank.sqlite'}"
        return
    with fresh_database(request.getfixturevalue("postgres_server")) as url:
        yield url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[s3.S3Server]:
    """A private S3 server for this session, whose credentials are in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.ENVIRONMENT.items():
            patch.setenv(name, value)
        try:
            with s3.temporary_s3() as server:
                yield server
        except s3.NoServer as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayNodes]:
    """A Ray cluster for this session; a test that loses nodes puts two back with ``keep(2)``."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'elm-agent[ray]'")
    with ray_nodes() as nodes:
        yield nodes
