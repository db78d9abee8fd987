"""A private PostgreSQL server for tests: its own folder, its own port on the loopback, gone afterwards."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, make_url, text

_DEBIAN = Path("/usr/lib/postgresql")


class NoServer(RuntimeError):
    """Why there is no server here."""


def server_binaries() -> Path:
    """The folder of ``initdb`` and ``pg_ctl``. Raises ``NoServer``."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    candidates = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not candidates:
        raise NoServer("no PostgreSQL server programs here: set ELM_TEST_POSTGRES to a URL, or install postgresql")
    return candidates[-1].parent


@contextmanager
def temporary_cluster(binaries: Path | None = None) -> Iterator[str]:
    """The URL of a new server's maintenance database; the server ends with the block. Raises ``NoServer``."""
    binaries = binaries or server_binaries()
    as_user = _as_ordinary_user()
    with tempfile.TemporaryDirectory(prefix="elm-postgres-") as folder:
        if as_user:
            shutil.chown(folder, "postgres")
        data, port = Path(folder) / "data", _free_port()
        _run([*as_user, binaries / "initdb", "-D", data, "-U", "elm", "-A", "trust", "-E", "UTF8", "--no-sync"])
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200"
        control = [*as_user, binaries / "pg_ctl", "-D", data, "-w"]
        _run([*control, "-l", Path(folder) / "log", "-o", options, "start"])
        try:
            yield f"postgresql+psycopg://elm@127.0.0.1:{port}/postgres"
        finally:
            _run([*control, "-m", "immediate", "stop"])


@contextmanager
def fresh_database(server_url: str, *, template: str | None = None) -> Iterator[str]:
    """The URL of a new empty database on the server, or of a copy of the one at ``template``; dropped afterwards."""
    name = f"elm_test_{secrets.token_hex(6)}"
    engine = create_engine(server_url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            copied = f" TEMPLATE {make_url(template).database}" if template else ""
            connection.execute(text(f"CREATE DATABASE {name}{copied}"))
        yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        engine.dispose()


def _as_ordinary_user() -> list[str]:
    """PostgreSQL refuses to run as root: then it runs as the user ``postgres``."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise NoServer("PostgreSQL does not run as root, and `setpriv` is not here to become another user")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # the server inherits it: a pipe would never end
        stderr=subprocess.PIPE if "initdb" in str(command) else subprocess.DEVNULL,
        cwd="/",
        check=False,
    )
    if done.returncode:
        reason = (done.stderr or b"").decode(errors="replace").strip()[-300:]
        raise NoServer(f"{Path(command[-1]).name!r}: {' '.join(map(str, command[:6]))} failed: {reason}")
