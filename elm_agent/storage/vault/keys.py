"""The keys of namespaces as rows: made, wrapped by a master key, unwrapped, wrapped anew. Seals no content.

Purpose "data" seals content and has versions, the highest of which seals what is new. Purpose "blind" makes names for
look-ups and never changes. Purpose "sealed" is a mark and no key: all content of the namespace is sealed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Row, exists, select
from sqlalchemy.orm import Session

from elm_agent.errors import VaultLocked
from elm_agent.storage.ledger.changes import lock_namespace
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import JobRow, NamespaceRow, UseRow, VaultKeyRow
from elm_agent.storage.vault import crypto
from elm_agent.storage.vault.master_keys import MasterKey, MasterKeys

DATA, BLIND, SEALED = "data", "blind", "sealed"


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The unwrapped keys of one namespace. ``sealed``: nothing readable is left in it."""

    data: dict[int, bytes] = field(repr=False)
    blind: bytes = field(repr=False)
    current: int
    sealed: bool


def encrypted(database: Database) -> bool:
    """Whether any namespace of the bank has keys."""
    with database.read() as session:
        return session.scalar(select(exists().where(VaultKeyRow.namespace.is_not(None)))) or False


def without_keys(database: Database) -> list[str]:
    """The namespaces that have none yet, by name."""
    missing = ~exists().where(VaultKeyRow.namespace == NamespaceRow.name)
    with database.read() as session:
        return list(session.scalars(select(NamespaceRow.name).where(missing).order_by(NamespaceRow.name)))


def key_rows(session: Session, namespace: str) -> list[VaultKeyRow]:
    """All of a namespace's, oldest version first."""
    query = select(VaultKeyRow).where(VaultKeyRow.namespace == namespace)
    return list(session.scalars(query.order_by(VaultKeyRow.purpose, VaultKeyRow.version)))


def load_ring(database: Database, namespace: str, masters: MasterKeys) -> KeyRing | None:
    """None for a namespace without keys. Raises ``VaultLocked`` for the wrong master key."""
    table = VaultKeyRow.__table__
    with database.look() as connection:
        found = connection.execute(select(table).where(table.c.namespace == namespace)).all()
    if not found:
        return None
    data = {row.version: unwrap(row, masters) for row in found if row.purpose == DATA}
    blind = [unwrap(row, masters) for row in found if row.purpose == BLIND]
    if not data or not blind:
        raise VaultLocked(f"namespace {namespace!r} has lost a key: restore the table vault_keys from a backup")
    return KeyRing(data, blind[0], max(data), any(row.purpose == SEALED for row in found))


def make_keys(database: Database, namespace: str, masters: MasterKeys) -> None:
    """The first keys of a namespace, unless somebody was quicker. A transaction of its own. Raises ``NotFound``."""
    master = masters.current()
    with database.write() as session:
        lock_namespace(session, namespace, alone=True)  # see ``guard``
        if key_rows(session, namespace):
            return
        now = database.now(session)
        session.add(new_row(namespace, DATA, 1, master, now))
        session.add(new_row(namespace, BLIND, 1, master, now))
        if _is_empty(session, namespace):
            session.add(mark_sealed(namespace, master, now))


def new_row(namespace: str, purpose: str, version: int, master: MasterKey, now: datetime) -> VaultKeyRow:
    """A fresh random key, wrapped."""
    return _row(
        namespace, purpose, version, master, now, _wrap(crypto.new_key(), namespace, purpose, version, master)
    )


def mark_sealed(namespace: str, master: MasterKey, now: datetime) -> VaultKeyRow:
    return _row(namespace, SEALED, 1, master, now, b"")


def unwrap(row: VaultKeyRow | Row[Any], masters: MasterKeys) -> bytes:
    """Raises ``VaultLocked``."""
    master = masters.named(row.master_id)
    if master is None:
        raise VaultLocked(
            f"the bank's key for namespace {row.namespace!r} was wrapped by master key {row.master_id}, "
            f"{masters.where} holds {masters.current().id}: give the master key {row.master_id}"
        )
    try:
        return crypto.unseal(master.secret, row.wrapped, namespace=row.namespace, purpose=_purpose(row.purpose))
    except crypto.NotOpened as error:
        raise VaultLocked(
            f"key {row.version} ({row.purpose}) of namespace {row.namespace!r} cannot be unwrapped: {error}; restore "
            "the table vault_keys from a backup"
        ) from None


def rewrap(rows: Iterable[VaultKeyRow], masters: MasterKeys, new: MasterKey) -> list[str]:
    """Wrap every key by ``new``; the ids of the master keys that wrapped them before. Raises ``VaultLocked``."""
    before = set()
    for row in rows:
        if row.master_id == new.id:
            continue
        before.add(row.master_id)
        if row.purpose != SEALED:
            row.wrapped = _wrap(unwrap(row, masters), row.namespace, row.purpose, row.version, new)
        row.master_id = new.id
    return sorted(before)


def _wrap(key: bytes, namespace: str, purpose: str, version: int, master: MasterKey) -> bytes:
    return crypto.seal(master.secret, key, namespace=namespace, purpose=_purpose(purpose), version=version)


def _purpose(purpose: str) -> str:
    return f"wrapped {purpose} key"


def _row(namespace: str, purpose: str, version: int, master: MasterKey, now: datetime, wrapped: bytes) -> VaultKeyRow:
    return VaultKeyRow(
        namespace=namespace,
        purpose=purpose,
        version=version,
        algorithm=crypto.ALGORITHM,
        master_id=master.id,
        wrapped=wrapped,
        created_at=now,
        retired_at=None,
    )


def _is_empty(session: Session, namespace: str) -> bool:
    """Whether nothing readable can be in a namespace: memories and notes have events, jobs and uses have none."""
    events = session.scalar(select(NamespaceRow.revision).where(NamespaceRow.name == namespace))
    filled = select(exists().where(JobRow.namespace == namespace) | exists().where(UseRow.namespace == namespace))
    return events == 0 and not session.scalar(filled)
