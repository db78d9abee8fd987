"""A lock with a name, between all processes of one database. Knows nothing of what it guards.

PostgreSQL: an advisory lock, which goes with its connection. SQLite: a file beside the database, whose lock goes
with its process.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from elm_agent.errors import StorageError, StoreBusy
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.faults import explain

_POLL_SECONDS = 0.02


@contextmanager
def only_one(database: Database, name: str, *, seconds: float) -> Iterator[None]:
    """Be the only one, of all threads and processes, in a block of this name.

    Raises:
        StoreBusy: somebody else was in it for ``seconds``.
        StorageError: the lock cannot be taken at all.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    with _file(database, digest, seconds) if database.sqlite else _advisory(database, digest, seconds):
        yield


@contextmanager
def _file(database: Database, digest: bytes, seconds: float) -> Iterator[None]:
    path = f"{Path(database.engine.url.database or '').absolute()}.{digest.hex()[:16]}.lock"
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise StoreBusy(f"the lock {path} was held for over {seconds:g} s") from None
    except OSError as error:
        raise StorageError(f"the lock {path} cannot be taken: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _advisory(database: Database, digest: bytes, seconds: float) -> Iterator[None]:
    number = {"number": int.from_bytes(digest[:8], "big", signed=True)}
    until = time.monotonic() + seconds
    try:
        connection = database.engine.connect()
    except SQLAlchemyError as error:
        raise explain(error, database.where) from error
    with connection:  # the lock ends with this transaction, however that ends
        while not _locked(database, connection, number):
            if time.monotonic() > until:
                raise StoreBusy(f"the lock {number['number']} of {database.where} was held for over {seconds:g} s")
            time.sleep(_POLL_SECONDS)
        yield


def _locked(database: Database, connection: Connection, number: dict[str, int]) -> bool:
    try:
        return bool(connection.scalar(text("SELECT pg_try_advisory_xact_lock(:number)"), number))
    except SQLAlchemyError as error:
        raise explain(error, database.where) from error
