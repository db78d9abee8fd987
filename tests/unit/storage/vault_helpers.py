"""An encrypted bank: the small one of ``bank_helpers``, with a master key of its own."""

from __future__ import annotations

from pathlib import Path

from bank_helpers import MODEL

from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.storage.vault.base import PlainVault, Vault
from elm_agent.storage.vault.encrypted import EncryptedVault
from elm_agent.storage.vault.master_keys import MasterKeys, from_function

FIRST, SECOND = b"1" * 32, b"2" * 32


def masters(*keys: bytes) -> MasterKeys:
    """A source that has all of ``keys``; the first is for new work."""
    from elm_agent.storage.vault.master_keys import MasterKey

    known = {MasterKey(key).id: key for key in keys}
    return from_function(lambda key_id: known.get(key_id or "", keys[0]))


def encrypted_bank(database: Database, folder: Path, *keys: bytes) -> Bank:
    """A bank on ``database`` with a vault of its own, as another process would have it."""
    vault = EncryptedVault(database, masters(*(keys or (FIRST,))))
    vault.ensure_all()
    return bank_with(database, folder, vault)


def plain_bank(database: Database, folder: Path) -> Bank:
    return bank_with(database, folder, PlainVault())


def bank_with(database: Database, folder: Path, vault: Vault) -> Bank:
    made = Bank(database, LocalTensors(folder), index="exact", vault=vault)
    made.bind("default", MODEL)
    return made
