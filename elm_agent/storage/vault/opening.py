"""Which vault a bank gets: plain, encrypted, or locked because it is encrypted and no key was given."""

from __future__ import annotations

from pathlib import Path

from elm_agent.storage.sql.database import Database
from elm_agent.storage.vault.base import LockedVault, PlainVault, Vault
from elm_agent.storage.vault.encrypted import EncryptedVault
from elm_agent.storage.vault.keys import encrypted
from elm_agent.storage.vault.master_keys import KeyFunction, source


def open_vault(
    database: Database,
    *,
    key_env: str | None = None,
    key_file: Path | None = None,
    function: KeyFunction | None = None,
) -> Vault:
    """With a key, every namespace that has none gets keys of its own at once; see ``master_keys`` for the sources.

    That the bank was encrypted under another key is not noticed here: ``bind`` and whatever opens something sealed
    raise ``VaultLocked`` then.

    Raises:
        SettingsError: two sources, or no usable key where it should be.
        NotFound, BankMoved: a namespace without keys was moved to another bank.
    """
    masters = source(key_env=key_env, key_file=key_file, function=function)
    if masters is None:
        return LockedVault() if encrypted(database) else PlainVault()
    masters.current()  # a source without a key says so now, not in the middle of the first answer
    vault = EncryptedVault(database, masters)
    vault.ensure_all()
    return vault
