"""Some active memories of a large namespace, spread evenly, with their keys: what a map of it is drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select

from elm_agent.records import KeyKind, MemoryState
from elm_agent.storage.indexes.feed import revision_of
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.paging import some
from elm_agent.storage.sql.rows import unpack
from elm_agent.storage.sql.schema import KeyRow, MemoryRow
from elm_agent.storage.vault.base import Vault

_DIGITS = 4  # of the random end of an id, hexadecimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """``keys_NE``: (N, E) float32 unit rows, in the order of ``ids`` and ``questions``; ``active``: of how many."""

    ids: tuple[str, ...]
    questions: tuple[str, ...]
    keys_NE: NDArray[np.float32]
    active: int


def sample(database: Database, vault: Vault, namespace: str, *, most: int) -> Sample:
    """About ``most`` active memories at the most, the same ones while the bank stays as it is.

    Raises ``NotFound`` for an unknown namespace, ``VaultLocked``.
    """
    active = MemoryRow.namespace == namespace, MemoryRow.state == MemoryState.ACTIVE.value
    with database.read() as session:
        revision_of(session, namespace)
        count = session.execute(select(func.count()).select_from(MemoryRow).where(*active)).scalar_one()
        query = select(MemoryRow.id).where(*active)
        if count > most:
            end = func.substr(MemoryRow.id, func.length(MemoryRow.id) - _DIGITS + 1, _DIGITS)
            query = query.where(end < f"{16**_DIGITS * most // count:0{_DIGITS}x}")
        ids = list(session.scalars(query))[:most]
        keys: dict[str, NDArray[np.float32]] = {}
        questions: dict[str, str] = {}
        for piece in some(ids):
            of = KeyRow.namespace == namespace, KeyRow.kind == KeyKind.INPUT.value, KeyRow.memory_id.in_(piece)
            keys |= {
                row.memory_id: unpack(row.vector)
                for row in session.execute(select(KeyRow.memory_id, KeyRow.vector).where(*of))
            }
            texts = select(MemoryRow.id, MemoryRow.question).where(
                MemoryRow.namespace == namespace, MemoryRow.id.in_(piece)
            )
            questions |= {row.id: vault.open(namespace, row.question) for row in session.execute(texts)}
    found = tuple(memory_id for memory_id in ids if memory_id in keys)
    rows = np.stack([keys[memory_id] for memory_id in found]) if found else np.zeros((0, 0), dtype=np.float32)
    return Sample(ids=found, questions=tuple(questions[memory_id] for memory_id in found), keys_NE=rows, active=count)
