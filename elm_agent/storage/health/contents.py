"""Can what users and models wrote in jobs and uses still be read, with the keys that there are? Changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import select

from elm_agent.errors import StorageError, VaultLocked
from elm_agent.storage.health.findings import Finding, FindingKind
from elm_agent.storage.sql import rows
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.faults import Damaged
from elm_agent.storage.sql.schema import JobRow, UseRow
from elm_agent.storage.vault.base import Vault

_PAGE = 500
_TABLES: tuple[tuple[str, Any, Callable[[Any, Vault], object]], ...] = (
    ("job", JobRow, rows.job_record),
    ("use", UseRow, rows.use_record),
)


def unreadable(database: Database, vault: Vault, namespace: str, checked: Counter[str]) -> Iterator[Finding]:
    """Jobs and uses that cannot be read. Raises ``VaultLocked`` at the first one whose key is not here."""
    for what, table, convert in _TABLES:
        last = ""
        while ids := _ids_after(database, table, namespace, last):
            for found in _loaded(database, table, namespace, ids):
                if not isinstance(found, Finding):
                    checked[f"{what}s read"] += 1
                    if (problem := _problem(convert, found, vault)) is None:
                        continue
                    found = Finding(problem[0], found.id, namespace, f"{what}: {problem[1]}")
                yield found
            last = ids[-1]


def _problem(convert: Callable[[Any, Vault], object], row: object, vault: Vault) -> tuple[FindingKind, str] | None:
    try:
        convert(row, vault)
    except VaultLocked:
        raise
    except Damaged as error:
        return FindingKind.DAMAGED_ROW, str(error)
    except StorageError as error:
        return FindingKind.LOST_KEY, str(error)
    return None


def _ids_after(database: Database, table: Any, namespace: str, last: str) -> Sequence[str]:
    query = select(table.id).where(table.namespace == namespace, table.id > last).order_by(table.id).limit(_PAGE)
    with database.read() as session:
        return session.scalars(query).all()


def _loaded(database: Database, table: Any, namespace: str, ids: Sequence[str]) -> Iterator[Any]:
    """The rows; a ``Finding`` for one that cannot even be loaded."""
    query = select(table).where(table.namespace == namespace, table.id.in_(ids))
    try:
        with database.read() as session:
            loaded = session.scalars(query).all()
    except Damaged as error:
        if len(ids) == 1:
            yield Finding(FindingKind.DAMAGED_ROW, ids[0], namespace, str(error))
            return
        for one in ids:
            yield from _loaded(database, table, namespace, [one])
    else:
        yield from loaded
