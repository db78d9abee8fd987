"""Keeps a process without a key from writing readable rows once another has switched encryption on. Seals nothing.

A bank gets its vault when it is opened. One that was plain then learns here, within each transaction that writes,
that the namespace has keys by now. Who makes them holds the namespace's row against everybody (``keys.make_keys``),
and here it is held against that: of two transactions at once the later one sees what the earlier one did.
"""

from __future__ import annotations

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from elm_agent.errors import VaultLocked
from elm_agent.storage.sql.schema import NamespaceRow, VaultKeyRow
from elm_agent.storage.vault.base import LockedVault, PlainVault, Vault


def refuse_readable(session: Session, vault: Vault, namespace: str) -> None:
    """Raise ``VaultLocked`` when ``vault`` leaves text readable and the namespace has keys. Costs others nothing."""
    if not _leaves_readable(vault):
        return
    held = select(NamespaceRow.name).where(NamespaceRow.name == namespace)
    session.execute(held.with_for_update(read=True, key_share=True)).first()
    if session.scalar(select(exists().where(VaultKeyRow.namespace == namespace))):
        raise VaultLocked(
            f"namespace {namespace[:100]!r} was encrypted after this process had opened the bank, and takes nothing "
            "readable: restart the process with [encryption] set (key_file or key_env)"
        )


def refuse_readable_namespace(session: Session, vault: Vault, namespace: str) -> None:
    """The same before a namespace is made: raise ``VaultLocked`` when any other of the bank has keys."""
    if _leaves_readable(vault) and session.scalar(select(exists().where(VaultKeyRow.namespace.is_not(None)))):
        raise VaultLocked(
            f"the bank was encrypted after this process had opened it, and a new namespace {namespace[:100]!r} would "
            "be readable: restart the process with [encryption] set (key_file or key_env)"
        )


def _leaves_readable(vault: Vault) -> bool:
    return isinstance(vault, PlainVault) and not isinstance(vault, LockedVault)
