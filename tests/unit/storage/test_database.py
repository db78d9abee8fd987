"""Opening, migrating, locking and refusing, on SQLite and PostgreSQL."""

from __future__ import annotations

import signal
import sqlite3
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from bank_helpers import MODEL
from sqlalchemy import inspect, select, text

import elm_agent.storage
from elm_agent.errors import SettingsError, StorageError, StoreBusy
from elm_agent.records import utcnow
from elm_agent.storage import publish
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import HEAD, Base, NamespaceRow

MIGRATIONS = Path(elm_agent.storage.__file__).parent / "sql" / "migrations"


@pytest.fixture
def database_url(bare_database_url: str) -> str:
    """Every schema is made here."""
    return bare_database_url


def add_namespace(database: Database, name: str, at: datetime | None = None) -> None:
    with database.write() as session:
        session.add(NamespaceRow(**publish.namespace_values(name, MODEL, "test", at or utcnow())))


def names(database: Database) -> list[str]:
    with database.read() as session:
        return sorted(session.scalars(select(NamespaceRow.name)))


def test_the_migrations_make_exactly_the_schema(database: Database) -> None:
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    with database.read() as session:
        assert session.scalar(text("SELECT version_num FROM alembic_version")) == HEAD


def test_head_is_the_last_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_down_and_up_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    url = database.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("ELM_DATABASE_URL", url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    command.downgrade(config, "base")
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    command.upgrade(config, "head")
    add_namespace(database, "default")
    assert names(database) == ["default"]


def test_concurrent_openers_migrate_once(database_url: str) -> None:
    start = threading.Barrier(8)

    def open_one(n: int) -> Database:
        start.wait()
        database = Database.open(database_url)
        add_namespace(database, f"n{n}")
        return database

    with ThreadPoolExecutor(8) as pool:
        databases = list(pool.map(open_one, range(8)))
    assert names(databases[0]) == [f"n{n}" for n in range(8)]
    for database in databases:
        database.close()


def test_a_failed_migration_leaves_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(command, "upgrade", _half_a_migration)
        with pytest.raises(RuntimeError, match="power cut"):
            Database.open(database_url)
    database = Database.open(database_url)
    assert names(database) == []
    database.close()


def _half_a_migration(config: Config, _revision: str) -> None:
    config.attributes["connection"].execute(text("CREATE TABLE namespaces (name TEXT)"))
    raise RuntimeError("power cut")


def test_a_database_of_a_newer_version_is_refused(database: Database, database_url: str) -> None:
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(
        StorageError, match=rf"newer elm-agent \(schema 9999, this one knows up to {HEAD}\); run `pip"
    ):
        Database.open(database_url)


def test_times_are_aware_and_in_utc_whatever_came_in(database: Database) -> None:
    noon = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=5)))
    add_namespace(database, "default", noon)
    with database.read() as session:
        row = session.get_one(NamespaceRow, "default")
        assert row.created_at == noon
        assert row.created_at.tzinfo == UTC
        assert abs((database.now(session) - utcnow()).total_seconds()) < 60


def test_a_block_that_raises_changes_nothing(database: Database) -> None:
    def write_and_raise() -> None:
        with database.write() as session:
            session.add(NamespaceRow(**publish.namespace_values("default", MODEL, "test", utcnow())))
            session.flush()
            raise KeyError

    with pytest.raises(KeyError):
        write_and_raise()
    assert names(database) == []


def test_a_broken_constraint_is_a_storage_error(database: Database) -> None:
    add_namespace(database, "default")
    with pytest.raises(StorageError, match="refused a change"):
        add_namespace(database, "default")


def test_sqlite_is_set_up_for_durability(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'new' / '100%.sqlite'}")
    with database.read() as session:
        found = [session.scalar(text(f"PRAGMA {name}")) for name in ("foreign_keys", "journal_mode", "synchronous")]
    assert found == ([1, "wal", 2] if sqlite3.sqlite_version_info >= (3, 51, 3) else [1, "persist", 2])
    database.close()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://localhost/x", "'mysql' is not known"),
        ("sqlite://", "SQLite in memory"),
        ("sqlite:///:memory:", "SQLite in memory"),
        ("nonsense", "cannot be read"),
    ],
)
def test_unusable_urls_are_refused(url: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        Database.open(url)


def test_a_locked_database_is_busy(database: Database, database_url: str) -> None:
    other = Database.open(database_url, busy_seconds=0.2)
    add_namespace(database, "default")
    touch = text("UPDATE namespaces SET revision = revision + 1")
    with database.write() as session:
        session.execute(touch)
        with pytest.raises(StoreBusy, match="is locked by another process"), other.write() as session_2:
            session_2.execute(touch)
    with other.write() as session:
        session.execute(touch)
    other.close()


def test_threads_of_one_process_wait_for_their_turn(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'bank.sqlite'}", busy_seconds=0.1)
    with (
        database.write(),
        ThreadPoolExecutor(1) as pool,
        pytest.raises(StoreBusy, match="held by another thread"),
    ):
        pool.submit(add_namespace, database, "default").result()
    database.close()


def test_a_read_only_database_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "bank.sqlite"
    database = Database.open(f"sqlite:///{path}")
    add_namespace(database, "default")
    database.close()
    readable = Database.open(f"sqlite:///file:{path}?mode=ro&uri=true")
    assert names(readable) == ["default"]
    with pytest.raises(StorageError, match=r"is read-only; check the owner"):
        add_namespace(readable, "second")
    readable.close()


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'bank.sqlite'}")
    add_namespace(database, "default")

    def fill() -> None:
        with database.write() as session:
            session.execute(text("PRAGMA max_page_count = 1"))  # the same code as a disk without space
            for n in range(2000):
                session.add(NamespaceRow(**publish.namespace_values(f"n{n}", MODEL, "x" * 200, utcnow())))

    with pytest.raises(StorageError, match="full disk; free some space"):
        fill()
    assert names(database) == ["default"]
    database.close()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bank.sqlite"
    path.write_bytes(b"these are not the bytes of a database" * 100)
    with pytest.raises(StorageError, match="damaged or not a database"):
        Database.open(f"sqlite:///{path}")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        Database.open(f"sqlite:///{tmp_path / 'file' / 'bank.sqlite'}")


@pytest.mark.parametrize(
    "url", ["postgresql://me:secret@127.0.0.1:1/x", "postgresql://127.0.0.1:1/x?password=secret"]
)
def test_an_unreachable_server_is_named_without_its_password(url: str) -> None:
    with pytest.raises(StorageError, match="cannot be reached") as caught:
        Database.open(url, busy_seconds=2)
    assert "secret" not in str(caught.value)


def test_a_traceback_holds_no_content(database: Database) -> None:
    question = "what is hidden"[8:]
    with pytest.raises(StorageError) as caught, database.write() as session:
        session.execute(text("INSERT INTO nowhere VALUES (:it)"), {"it": question * 2})
    assert question * 2 not in "".join(traceback.format_exception(caught.value))


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StorageError, match=r"pip install 'elm-agent\[postgres\]'"):
        Database.open("postgresql://localhost/x")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["read", "write"])
def test_an_interrupt_waits_for_the_end_of_a_transaction(
    database: Database, kind: str, number: signal.Signals
) -> None:
    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before, reached = signal.signal(number, interrupt), False
    try:
        with pytest.raises(KeyboardInterrupt), getattr(database, kind)() as session:  # noqa: PT012
            signal.raise_signal(number)
            session.scalar(text("SELECT 1"))
            reached = True
        assert reached
        assert signal.getsignal(number) is interrupt
    finally:
        signal.signal(number, before)
    with database.write() as session:  # nothing is left locked
        session.scalar(text("SELECT 1"))
