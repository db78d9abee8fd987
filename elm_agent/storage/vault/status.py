"""What an encrypted bank says of its keys and of what is still to be sealed. Reads only, and needs no key for it."""

from __future__ import annotations

from dataclasses import dataclass

from elm_agent.errors import SettingsError, VaultLocked
from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.schema import VaultKeyRow
from elm_agent.storage.vault import sealed_columns
from elm_agent.storage.vault.encrypted import EncryptedVault
from elm_agent.storage.vault.keys import DATA, SEALED, key_rows, unwrap


@dataclass(frozen=True, slots=True)
class VaultStatus:
    """One namespace. ``version``: of the key that seals what is new, None without keys; ``older``: not yet retired
    ones; ``readable`` and ``outdated``: rows with content that is not sealed, or sealed by another key; ``sealed``:
    a rotation has found nothing readable; ``problem``: why the keys cannot be used with the master key that is given.
    """

    namespace: str
    version: int | None
    older: tuple[int, ...]
    retired: tuple[int, ...]
    master_ids: tuple[str, ...]
    sealed: bool
    readable: int
    outdated: int
    problem: str | None


def vault_status(bank: Bank) -> list[VaultStatus]:
    """All namespaces by name. Counts with a scan of each table."""
    return [_status(bank, info.name) for info in bank.namespaces()]


def _status(bank: Bank, namespace: str) -> VaultStatus:
    with bank.database.read() as session:
        found = key_rows(session, namespace)
        live = [row.version for row in found if row.purpose == DATA and row.retired_at is None]
        version = max(live, default=None)
        readable, outdated = sealed_columns.count(session, namespace, version)
    return VaultStatus(
        namespace=namespace,
        version=version,
        older=tuple(live[:-1]),
        retired=tuple(row.version for row in found if row.purpose == DATA and row.retired_at is not None),
        master_ids=tuple(sorted({row.master_id for row in found})),
        sealed=any(row.purpose == SEALED for row in found),
        readable=readable,
        outdated=outdated,
        problem=_problem(bank, found),
    )


def _problem(bank: Bank, found: list[VaultKeyRow]) -> str | None:
    if not isinstance(bank.vault, EncryptedVault):
        return "no key was given" if found else None
    try:
        for row in found:
            if row.purpose != SEALED:
                unwrap(row, bank.vault.masters)
    except (VaultLocked, SettingsError) as error:
        return str(error)
    return None
