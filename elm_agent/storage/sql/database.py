"""One SQL database, SQLite or PostgreSQL: connections, transactions, its clock. Knows nothing of memories or jobs.

SQLite: every write begins with BEGIN IMMEDIATE, so that two writers wait instead of failing half-way, and is on
disk when it returns. PostgreSQL: READ COMMITTED, rows are locked where they are read. One process, one
``Database``; any number of threads. Do not carry one across a fork.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Session

from elm_agent.errors import InputError, SettingsError, StorageError, StoreBusy
from elm_agent.records import utcnow
from elm_agent.storage.sql.faults import explain
from elm_agent.storage.sql.upgrade import upgrade

_WRITE = "elm_write"
_WAL_SAFE = (3, 51, 3)  # before, SQLite's WAL can corrupt the file at a reset: https://www.sqlite.org/wal.html


class Database:
    """An open database at the newest schema. Make it with ``Database.open``."""

    def __init__(self, engine: Engine, *, busy_seconds: float) -> None:
        self.engine = engine
        self.sqlite = engine.dialect.name == "sqlite"
        self.where = engine.url.render_as_string(hide_password=True)
        self._busy_seconds = busy_seconds
        self._writing = engine.execution_options(**{_WRITE: True})
        self._current = threading.local()  # the sessions of the transactions that a thread is in
        self._writer = threading.Lock()  # threads of this process queue here, fairly, not in SQLite's sleeps

    @classmethod
    def open(cls, url: str, *, busy_seconds: float = 30.0) -> Database:
        """Connect, create or migrate the schema, and return the database.

        ``busy_seconds``: how long any statement waits for a lock of somebody else.

        Raises:
            SettingsError: the URL is not one of SQLite (a file) or PostgreSQL.
            StoreBusy: a lock was held for longer than ``busy_seconds``.
            StorageError: unreachable, read-only, full, damaged, or written by a newer version.
        """
        engine = _engine(_checked_url(url), busy_seconds)
        database = cls(engine, busy_seconds=busy_seconds)
        try:
            with database._explained():
                upgrade(engine, database._writing, busy_seconds=busy_seconds)
        except BaseException:
            engine.dispose()
            raise
        return database

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads."""
        with (
            signals_wait(),
            self._explained(),
            Session(self.engine, expire_on_commit=False) as session,
            session.begin(),
            self._within(session),
        ):
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that may write: committed and durable when the block ends, undone when it raises."""
        with (
            signals_wait(),
            self._explained(),
            self._turn(),
            Session(self._writing, expire_on_commit=False) as session,
            session.begin(),
            self._within(session),
        ):
            yield session

    @contextmanager
    def look(self) -> Iterator[Connection]:
        """For one small read, wherever it is needed: in the transaction that this thread is in, if it is in one.

        A second transaction could wait for a writer of SQLite that itself waits for the first one to end.
        """
        if within := self._open_here():
            yield within[-1].connection()
            return
        with self.read() as session:
            yield session.connection()

    @contextmanager
    def _within(self, session: Session) -> Iterator[None]:
        within = self._open_here()
        within.append(session)
        try:
            yield
        finally:
            within.remove(session)  # not always the last one: a generator may end out of turn

    def _open_here(self) -> list[Session]:
        """The sessions of the transactions that this thread is in."""
        if not hasattr(self._current, "sessions"):
            self._current.sessions = []
        sessions: list[Session] = self._current.sessions
        return sessions

    def add_once(
        self, session: Session, table: type[DeclarativeBase], values: dict[str, Any], key: list[str]
    ) -> bool:
        """Insert a row unless one has the same ``key`` (a primary key or unique constraint); whether it was new."""
        insert = sqlite_insert if self.sqlite else postgres_insert
        statement = insert(table).values(values).on_conflict_do_nothing(index_elements=key)
        return session.execute(statement.returning(text("1"))).first() is not None

    def now(self, session: Session) -> datetime:
        """The database's clock; leases are judged by it alone. SQLite has none of its own but the machine's."""
        if self.sqlite:
            return utcnow()
        moment: datetime = session.execute(text("SELECT clock_timestamp()")).scalar_one()
        return moment

    def size(self) -> int:
        """Bytes of everything in it, its indexes too."""
        query = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
        with self.read() as session:
            if not self.sqlite:
                query = "SELECT pg_database_size(current_database())"
            return int(session.execute(text(query)).scalar_one())

    def scrub(self) -> None:
        """Leave no byte of deleted rows in the files of an SQLite database.

        ``secure_delete`` overwrites them in the file itself; here the journal, which keeps old pages, is emptied.
        PostgreSQL keeps deleted rows in its files until they are vacuumed, and in its log until that is recycled.
        """
        if not self.sqlite:
            return
        with signals_wait(), self._explained(), self._turn(), self._writing.connect() as connection:
            raw = connection.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)
            if _wal():
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                return
            raw.execute("PRAGMA journal_size_limit = 0")  # the next commit cuts the kept journal down to this
            try:
                raw.execute("BEGIN IMMEDIATE")
                raw.execute("UPDATE alembic_version SET version_num = version_num")
                raw.execute("COMMIT")
            finally:
                raw.execute("PRAGMA journal_size_limit = -1")

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self.sqlite:
            yield
            return
        if not self._writer.acquire(timeout=self._busy_seconds):
            raise StoreBusy(f"the database {self.where} is held by another thread for over {self._busy_seconds:g} s")
        try:
            yield
        finally:
            self._writer.release()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise explain(error, self.where) from error
        except UnicodeEncodeError as error:
            bad = error.object[error.start : error.end]
            raise InputError(f"a name or text holds half a character ({bad[:4]!r}): give whole ones") from None


@contextmanager
def signals_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM take effect when the block ends, not inside.

    An exception out of nowhere between two lines of the driver or the pool would leave a connection open with its
    lock, and SQLite would make every other writer wait for it. Only the main thread is ever interrupted so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if callable(handler):  # what is ignored or left to the system stays so
            signal.signal(number, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
        for caught, frame in came[:1]:
            handler = before[signal.Signals(caught)]
            assert callable(handler)
            handler(caught, frame)


def _checked_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # a port that is no number is the latter
        raise SettingsError("the database URL cannot be read: expected sqlite:///FILE or postgresql://…") from None
    backend = parsed.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return _password_in_place(parsed).set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise SettingsError(f"database {backend!r} is not known: expected sqlite:///FILE or postgresql://…")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise SettingsError(f"database {parsed.drivername!r} is not known: expected sqlite:///FILE")
    if parsed.database in (None, "", ":memory:"):
        raise SettingsError("a bank needs a database on disk: got SQLite in memory, expected sqlite:///FILE")
    return parsed


def _password_in_place(url: URL) -> URL:
    """libpq also takes a password as a parameter; only one in its own place is hidden in messages."""
    given = url.query.get("password")
    if given is None:
        return url
    password = given if isinstance(given, str) else given[-1]
    return url.difference_update_query(["password"]).set(password=password)


def _engine(url: URL, busy_seconds: float) -> Engine:
    options: dict[str, Any] = {
        "json_serializer": partial(json.dumps, allow_nan=False),  # NaN is not JSON and Postgres refuses it
        "hide_parameters": True,  # a traceback in a log must not hold what a purge cannot reach
        "pool_size": 8,
        "max_overflow": 56,
        "pool_timeout": busy_seconds,
    }
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": busy_seconds}, **options)
        _make_folder(url)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    session = f"{url.query.get('options', '')} -c lock_timeout={int(busy_seconds * 1000)} -c timezone=UTC"
    connect = {"options": session, "connect_timeout": max(2, int(busy_seconds))}
    try:
        return create_engine(
            url, connect_args=connect, pool_pre_ping=True, isolation_level="READ COMMITTED", **options
        )
    except ModuleNotFoundError:
        raise StorageError("PostgreSQL needs its driver: run `pip install 'elm-agent[postgres]'`") from None


def _make_folder(url: URL) -> None:
    if "uri" in url.query:  # a file: URI names its own mode; nothing is made for it
        return
    folder = Path(url.database or "").absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the folder {folder} of the database cannot be made: {error.strerror}") from error


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself; see _begin_sqlite
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    # Both are durable at commit. A kept rollback journal is a little quicker than one that is made and deleted.
    cursor.execute(f"PRAGMA journal_mode = {'WAL' if _wal() else 'PERSIST'}")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA secure_delete = ON")  # a purged question must not stay in free pages
    cursor.close()


def _wal() -> bool:
    return sqlite3.sqlite_version_info >= _WAL_SAFE


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def connect_only(url: str, *, busy_seconds: float = 30.0) -> Engine:
    """An engine whose transactions may write, for the ``alembic`` command: nothing is migrated by itself."""
    return _engine(_checked_url(url), busy_seconds).execution_options(**{_WRITE: True})
