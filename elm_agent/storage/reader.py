"""Reading a bank: namespaces, memories, prompts, episodes, keys, events. Changes nothing."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from operator import eq, ge, lt
from typing import TYPE_CHECKING

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from elm_agent.errors import InputError, TensorMissing
from elm_agent.protocols import TensorStore
from elm_agent.records import (
    Episode,
    EventKind,
    EventRecord,
    KeyKind,
    MemoryKeys,
    MemoryRecord,
    MemoryState,
    ModelFingerprint,
)
from elm_agent.storage.indexes.feed import revision_of
from elm_agent.storage.ledger import changes as ledger
from elm_agent.storage.sql import rows
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import (
    EpisodeRow,
    EventRow,
    ExportRow,
    KeyRow,
    MemoryRow,
    NamespaceRow,
    TombstoneRow,
)
from elm_agent.storage.uses import BROKEN, FIXED, USES
from elm_agent.storage.vault.base import PlainVault, Vault

if TYPE_CHECKING:
    from elm_agent.adapters import Kept

_PROMPTS = 64  # memories kept at hand; as soft prompts 46 KB each for the embedded model, 290 KB for a 7B one
_PROMPT_BYTES = 2**28  # of them together: a `lora` one has 20 MB for the embedded model, 160 MB for a 7B one

_ORDERS = {
    "created_at": MemoryRow.created_at,
    "updated_at": MemoryRow.updated_at,
    "final_vote_share": MemoryRow.final_vote_share,
    "uses": USES,
    "fixed": FIXED,
    "broken": BROKEN,
}


@dataclass(frozen=True, slots=True)
class NamespaceInfo:
    """One namespace, the model it is for, how far its chain is, and where it went if it was moved."""

    name: str
    model: ModelFingerprint
    revision: int
    moved_to: str | None = None


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is left of a purged memory."""

    memory_id: str
    actor: str
    purged_at: datetime


class BankReader:
    """The half of ``Bank`` that only reads."""

    def __init__(self, database: Database, tensors: TensorStore, vault: Vault | None = None) -> None:
        self.database = database
        self.tensors = tensors
        self.vault = vault or PlainVault()
        self._prompts: OrderedDict[tuple[str, str, str], Kept] = OrderedDict()
        self._lock = threading.Lock()

    def namespaces(self) -> list[NamespaceInfo]:
        """All namespaces by name. Reads no memories; see ``memory_counts``."""
        with self.database.read() as session:
            return [
                NamespaceInfo(row.name, rows.fingerprint_of(row), row.revision, row.moved_to)
                for row in session.scalars(select(NamespaceRow).order_by(NamespaceRow.name))
            ]

    def namespace(self, name: str) -> NamespaceInfo:
        """Raises ``NotFound``."""
        with self.database.read() as session:
            revision_of(session, name)
            row = session.get_one(NamespaceRow, name)
            return NamespaceInfo(row.name, rows.fingerprint_of(row), row.revision, row.moved_to)

    def memory_counts(self) -> dict[str, dict[MemoryState, int]]:
        """How many memories each namespace has in each state, purged ones too. Counts every memory of the bank."""
        states = select(MemoryRow.namespace, MemoryRow.state, func.count()).group_by(
            MemoryRow.namespace, MemoryRow.state
        )
        purged = select(TombstoneRow.namespace, func.count()).group_by(TombstoneRow.namespace)
        with self.database.read() as session:
            found = [(name, MemoryState(state), count) for name, state, count in session.execute(states)]
            found += [(name, MemoryState.PURGED, count) for name, count in session.execute(purged)]
            names = session.scalars(select(NamespaceRow.name).order_by(NamespaceRow.name)).all()
        counts = {name: dict.fromkeys(MemoryState, 0) for name in names}
        for name, state, count in found:
            counts[name][state] = count
        return counts

    def prompt(self, namespace: str, memory_id: str) -> Kept:
        """What was trained, a soft prompt or another kind; digest, names and shapes checked. A few are kept at hand.

        Raises ``NotFound``, ``TensorMissing`` or ``TensorCorrupt``.
        """
        memory = self._memory_row(namespace, memory_id)
        name = (namespace, memory_id, memory.tensor_digest)
        with self._lock:
            if (known := self._prompts.get(name)) is not None:
                self._prompts.move_to_end(name)
                return known
        try:
            return self._load_prompt(memory)
        except TensorMissing:
            again = self._memory_row(namespace, memory_id)
            if again.tensor_digest == memory.tensor_digest:
                raise
            return self._load_prompt(again)  # it was sealed anew by a rotation of keys, just now

    def _memory_row(self, namespace: str, memory_id: str) -> MemoryRow:
        with self.database.read() as session:
            return ledger.find_memory(session, namespace, memory_id)

    def _load_prompt(self, memory: MemoryRow) -> Kept:
        from elm_agent.adapters import bytes_of, from_bytes  # torch enters late: reading commands need none

        namespace, memory_id = memory.namespace, memory.id
        prompt = from_bytes(
            self.vault.open_bytes(namespace, self.tensors.get(namespace, memory.tensor_digest)),
            recipe=rows.recipe_of(memory),
            virtual_tokens=memory.virtual_tokens,
            width=memory.width,
            memory_id=memory_id,
        )
        with self._lock:
            self._prompts[namespace, memory_id, memory.tensor_digest] = prompt
            held = sum(map(bytes_of, self._prompts.values()))
            while len(self._prompts) > _PROMPTS or (held > _PROMPT_BYTES and len(self._prompts) > 1):
                held -= bytes_of(self._prompts.popitem(last=False)[1])
        return prompt

    def drop_caches(self, namespace: str, memory_ids: Collection[str]) -> None:
        """Forget prompts that this process keeps in memory."""
        with self._lock:
            for name in [name for name in self._prompts if name[0] == namespace and name[1] in memory_ids]:
                del self._prompts[name]

    def memory(self, namespace: str, memory_id: str) -> MemoryRecord:
        """Raises ``NotFound``."""
        with self.database.read() as session:
            ledger.find_memory(session, namespace, memory_id)
            return read_record(session, namespace, memory_id, self.vault)

    def memories(
        self,
        namespace: str,
        *,
        state: MemoryState | None = None,
        limit: int | None = None,
        offset: int = 0,
        order: str = "-created_at",
    ) -> list[MemoryRecord]:
        """A page of the namespace, ordered by a field of ``MemoryRecord``; '-' in front: highest first."""
        column = _ORDERS.get(order.removeprefix("-"))
        if column is None:
            raise InputError(f"memories cannot be ordered by {order[:80]!r}: expected one of {', '.join(_ORDERS)}")
        down = order.startswith("-")
        query = select(MemoryRow, USES, FIXED, BROKEN).where(MemoryRow.namespace == namespace)
        if state is not None:
            query = query.where(MemoryRow.state == state.value)
        query = query.order_by(column.desc() if down else column.asc(), MemoryRow.id.desc() if down else MemoryRow.id)
        with self.database.read() as session:
            revision_of(session, namespace)
            found = session.execute(query.limit(limit).offset(offset))
            return [rows.memory_record(row, self.vault, *counts) for row, *counts in found]

    def episode(self, namespace: str, memory_id: str) -> Episode:
        """The experience that the memory came from. Raises ``NotFound``."""
        with self.database.read() as session:
            memory = ledger.find_memory(session, namespace, memory_id)
            return rows.episode_record(session.get_one(EpisodeRow, (namespace, memory.episode_id)), self.vault)

    def keys(self, namespace: str, memory_id: str) -> MemoryKeys:
        """Both retrieval keys as they were stored. Raises ``NotFound``."""
        query = select(KeyRow.kind, KeyRow.vector).where(KeyRow.namespace == namespace, KeyRow.memory_id == memory_id)
        with self.database.read() as session:
            ledger.find_memory(session, namespace, memory_id)
            found = {kind: rows.unpack(vector) for kind, vector in session.execute(query)}
        return MemoryKeys(input=found[KeyKind.INPUT.value], kv=found.get(KeyKind.KV.value))

    def events(
        self,
        namespace: str,
        memory_id: str | None = None,
        *,
        kind: EventKind | None = None,
        actor: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        before: int | None = None,
        limit: int | None = None,
    ) -> list[EventRecord]:
        """The history of the namespace, or of one memory, oldest first; with ``limit`` the newest of it.

        ``since`` (inclusive) and ``until`` (exclusive): aware times. ``before``: only revisions below this one.
        """
        wanted = (
            (EventRow.memory_id, memory_id, eq),
            (EventRow.kind, kind, eq),
            (EventRow.actor, actor, eq),
            (EventRow.created_at, since, ge),
            (EventRow.created_at, until, lt),
            (EventRow.revision, before, lt),
        )
        query = (
            select(EventRow).where(EventRow.namespace == namespace).order_by(EventRow.revision.desc()).limit(limit)
        )
        for column, value, compare in wanted:
            if value is not None:
                query = query.where(compare(column, value))
        with self.database.read() as session:
            return [rows.event_record(row, self.vault) for row in session.scalars(query)][::-1]

    def tombstones(self, namespace: str) -> list[Tombstone]:
        """What was purged, newest first."""
        query = select(TombstoneRow).where(TombstoneRow.namespace == namespace).order_by(TombstoneRow.revision.desc())
        with self.database.read() as session:
            revision_of(session, namespace)
            return [Tombstone(row.memory_id, row.actor, row.purged_at) for row in session.scalars(query)]

    def exports(self, namespace: str, memory_id: str) -> list[tuple[str, str]]:
        """(pack id, path) of every pack that the memory left the bank in, oldest first."""
        query = select(ExportRow).where(ExportRow.namespace == namespace, ExportRow.memory_id == memory_id)
        with self.database.read() as session:
            return [(row.pack_id, row.path) for row in session.scalars(query.order_by(ExportRow.created_at))]


def read_record(session: Session, namespace: str, memory_id: str, vault: Vault) -> MemoryRecord:
    """A memory that is known to be there, with its counts."""
    query = select(MemoryRow, USES, FIXED, BROKEN).where(MemoryRow.namespace == namespace, MemoryRow.id == memory_id)
    row, uses, fixed, broken = session.execute(query).one()
    return rows.memory_record(row, vault, uses, fixed, broken)
