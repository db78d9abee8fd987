"""What a database's refusal means, in one sentence. Knows driver error codes; nothing of tables."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from elm_agent.errors import StorageError, StoreBusy

_BUSY = "is locked by another process; wait for it or stop it, then run the same command again"
_READ_ONLY = "is read-only; check the owner, mode and mount of its folder, or the rights of its user"
_FULL = "is on a full disk; free some space and run the same command again. Nothing was half written"
_NO_OPEN = "cannot be opened; check that the folder exists and may be written"
_DAMAGED = "is damaged or not a database; restore it from a backup"

# https://www.sqlite.org/rescode.html, primary codes
_SQLITE = {5: _BUSY, 6: _BUSY, 8: _READ_ONLY, 11: _DAMAGED, 13: _FULL, 14: _NO_OPEN, 26: _DAMAGED}
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_POSTGRES = {
    "25006": _READ_ONLY,
    "40P01": _BUSY,
    "42501": _READ_ONLY,
    "53100": _FULL,
    "55P03": _BUSY,
    "57014": _BUSY,
}


class Refused(StorageError):
    """A constraint of the schema was broken. Callers that know what it means say so in better words."""


class Damaged(StorageError):
    """A row holds what nothing ever writes there."""


def explain(error: SQLAlchemyError, where: str) -> StorageError:
    """The ``StorageError`` or ``StoreBusy`` for what SQLAlchemy raised; ``where`` names the database."""
    if isinstance(error, PoolTimeout):
        return StoreBusy(f"the database {where} has no free connection; too many threads hold one")
    if isinstance(error, IntegrityError):
        return Refused(f"the database {where} refused a change: {_first_line(error.orig)}")
    if isinstance(error, DBAPIError):
        return _explain_driver(error, where)
    return StorageError(f"the database {where} failed ({type(error).__name__}): {_first_line(error)}")


def _explain_driver(error: DBAPIError, where: str) -> StorageError:
    original = error.orig
    meaning: str | None = None
    if isinstance(original, sqlite3.Error):
        code = getattr(original, "sqlite_errorcode", None)
        meaning = _SQLITE.get(code & 0xFF) if code is not None else None
    else:
        state = getattr(original, "sqlstate", None)
        meaning = _POSTGRES.get(state or "")
        if meaning is None and (state is None or state.startswith(("08", "57P"))):
            meaning = f"cannot be reached ({_first_line(original)}); check the URL and that the server runs"
    text = f"the database {where} {meaning or 'failed: ' + _first_line(original)}"
    return StoreBusy(text) if meaning is _BUSY else StorageError(text)


def _first_line(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
