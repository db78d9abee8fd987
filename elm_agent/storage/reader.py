"""Reading a bank: namespaces, memories, prompts, episodes, keys, events. Changes nothing."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from elm_agent.errors import InputError
from elm_agent.protocols import TensorStore
from elm_agent.records import (
    Episode,
    EventRecord,
    KeyKind,
    MemoryKeys,
    MemoryRecord,
    MemoryState,
    ModelFingerprint,
)
from elm_agent.storage import ledger, rows
from elm_agent.storage.database import Database
from elm_agent.storage.feed import revision_of
from elm_agent.storage.schema import EpisodeRow, EventRow, KeyRow, MemoryRow, NamespaceRow
from elm_agent.storage.uses import BROKEN, FIXED, USES

if TYPE_CHECKING:
    from elm_agent.softprompt import SoftPrompt

_PROMPTS = 64  # prompts kept in memory; 46 KB each for the embedded model, 290 KB for a 7B one

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
    """One namespace, the model it is for, and how many memories are in each state."""

    name: str
    model: ModelFingerprint
    counts: dict[MemoryState, int]
    revision: int


class BankReader:
    """The half of ``Bank`` that only reads."""

    def __init__(self, database: Database, tensors: TensorStore) -> None:
        self.database = database
        self.tensors = tensors
        self._prompts: OrderedDict[tuple[str, str, str], SoftPrompt] = OrderedDict()
        self._lock = threading.Lock()

    def namespaces(self) -> list[NamespaceInfo]:
        """All namespaces by name."""
        states = select(MemoryRow.namespace, MemoryRow.state, func.count()).group_by(
            MemoryRow.namespace, MemoryRow.state
        )
        with self.database.read() as session:
            found = session.scalars(select(NamespaceRow).order_by(NamespaceRow.name)).all()
            counts = {row.name: dict.fromkeys(MemoryState, 0) for row in found}
            for name, state, count in session.execute(states):
                counts[name][MemoryState(state)] = count
            return [
                NamespaceInfo(row.name, rows.fingerprint_of(row), counts[row.name], row.revision) for row in found
            ]

    def prompt(self, namespace: str, memory_id: str) -> SoftPrompt:
        """The trained prompt, its digest and shape checked. A few are kept in memory.

        Raises ``NotFound``, ``TensorMissing`` or ``TensorCorrupt``.
        """
        from elm_agent.softprompt import from_bytes  # torch enters late: reading commands need none

        with self.database.read() as session:
            memory = ledger.find_memory(session, namespace, memory_id)
        name = (namespace, memory_id, memory.tensor_digest)
        with self._lock:
            if (known := self._prompts.get(name)) is not None:
                self._prompts.move_to_end(name)
                return known
        data = self.tensors.get(memory.tensor_digest)
        prompt = from_bytes(data, shape=(memory.virtual_tokens, memory.width), memory_id=memory_id)
        with self._lock:
            self._prompts[name] = prompt
            while len(self._prompts) > _PROMPTS:
                self._prompts.popitem(last=False)
        return prompt

    def memory(self, namespace: str, memory_id: str) -> MemoryRecord:
        """Raises ``NotFound``."""
        with self.database.read() as session:
            ledger.find_memory(session, namespace, memory_id)
            return read_record(session, namespace, memory_id)

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
            raise InputError(f"memories cannot be ordered by {order!r}: expected one of {', '.join(_ORDERS)}")
        down = order.startswith("-")
        query = select(MemoryRow, USES, FIXED, BROKEN).where(MemoryRow.namespace == namespace)
        if state is not None:
            query = query.where(MemoryRow.state == state.value)
        query = query.order_by(column.desc() if down else column.asc(), MemoryRow.id.desc() if down else MemoryRow.id)
        with self.database.read() as session:
            revision_of(session, namespace)
            found = session.execute(query.limit(limit).offset(offset))
            return [rows.memory_record(row, *counts) for row, *counts in found]

    def episode(self, namespace: str, memory_id: str) -> Episode:
        """The experience that the memory came from. Raises ``NotFound``."""
        with self.database.read() as session:
            memory = ledger.find_memory(session, namespace, memory_id)
            return rows.episode_record(session.get_one(EpisodeRow, (namespace, memory.episode_id)))

    def keys(self, namespace: str, memory_id: str) -> MemoryKeys:
        """Both retrieval keys as they were stored. Raises ``NotFound``."""
        query = select(KeyRow.kind, KeyRow.vector).where(KeyRow.namespace == namespace, KeyRow.memory_id == memory_id)
        with self.database.read() as session:
            ledger.find_memory(session, namespace, memory_id)
            found = {kind: rows.unpack(vector) for kind, vector in session.execute(query)}
        return MemoryKeys(input=found[KeyKind.INPUT.value], kv=found.get(KeyKind.KV.value))

    def events(self, namespace: str, memory_id: str | None = None) -> list[EventRecord]:
        """The history of the namespace, or of one memory, oldest first."""
        query = select(EventRow).where(EventRow.namespace == namespace).order_by(EventRow.revision)
        if memory_id is not None:
            query = query.where(EventRow.memory_id == memory_id)
        with self.database.read() as session:
            return [rows.event_record(row) for row in session.scalars(query)]


def read_record(session: Session, namespace: str, memory_id: str) -> MemoryRecord:
    """A memory that is known to be there, with its counts."""
    query = select(MemoryRow, USES, FIXED, BROKEN).where(MemoryRow.namespace == namespace, MemoryRow.id == memory_id)
    row, uses, fixed, broken = session.execute(query).one()
    return rows.memory_record(row, uses, fixed, broken)
