"""Brings a database to the newest schema when it is opened: once, whoever opens it, and all or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, inspect, text

from elm_agent.errors import StorageError, StoreBusy
from elm_agent.storage.sql.schema import HEAD

_FOLDER = Path(__file__).with_name("migrations")
_ADVISORY_KEY = 0x656C6D  # "elm"; any number that nobody else uses


def upgrade(reading: Engine, writing: Engine, *, busy_seconds: float) -> None:
    """Migrate to ``HEAD`` unless that is where the database is; a read-only database at ``HEAD`` is fine.

    Raises:
        StoreBusy: somebody else has been migrating for ``busy_seconds``.
        StorageError: the database was written by a newer version of the library, or is half of a bank.
    """
    with reading.connect() as connection:
        if _version(connection) == HEAD:
            return
    with _one_at_a_time(writing, busy_seconds), writing.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_KEY})
        version = _version(connection)
        if version != HEAD:
            _migrate(connection, version)


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return version


def _migrate(connection: Connection, version: str | None) -> None:
    from alembic import command  # heavy, and needed only when there is something to migrate
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if version is not None and version not in known:
        raise StorageError(
            f"the database {connection.engine.url.render_as_string(hide_password=True)} was written by a newer "
            f"elm-agent (schema {version}, this one knows up to {HEAD}); run `pip install --upgrade elm-agent`"
        )
    if version is None and inspect(connection).has_table("namespaces"):
        raise StorageError(
            f"the database {connection.engine.url.render_as_string(hide_password=True)} has tables of a bank but no "
            "version: a migration was broken off by something else than elm-agent; restore it from a backup"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextmanager
def _one_at_a_time(engine: Engine, seconds: float) -> Iterator[None]:
    """A file lock beside an SQLite file; PostgreSQL takes an advisory lock inside the transaction instead."""
    if engine.dialect.name != "sqlite" or "uri" in engine.url.query:
        yield
        return
    path = f"{engine.url.database}.migrate.lock"
    try:
        with FileLock(path, timeout=seconds):
            yield
    except Timeout:
        raise StoreBusy(
            f"another process has been migrating the database for over {seconds:g} s (lock {path})"
        ) from None
    except PermissionError as error:
        raise StorageError(
            f"the folder of the database cannot be written ({path}); check its owner, mode and mount"
        ) from error
