"""Is each memory whole, and what the ledger says it is? Reads rows, tensors and events; changes nothing.

Page by page, in short transactions. A memory that is changed, sealed anew or purged meanwhile is looked at again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from sqlalchemy import select

from elm_agent.errors import StorageError, TensorCorrupt, TensorMissing, VaultLocked
from elm_agent.protocols import TensorStore
from elm_agent.records import EventKind, KeyKind, MemoryState
from elm_agent.storage.health.findings import Finding, FindingKind
from elm_agent.storage.ledger.proofs import PREFIX, horizon, record_proof
from elm_agent.storage.sql import rows
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.faults import Damaged
from elm_agent.storage.sql.schema import EpisodeRow, EventRow, KeyRow, MemoryRow
from elm_agent.storage.vault.base import Vault

PAGE = 200
_BECOMES = {
    EventKind.CREATED: MemoryState.CANDIDATE,
    EventKind.IMPORTED: MemoryState.CANDIDATE,
    EventKind.GATED: MemoryState.CANDIDATE,  # what it lets serve is activated next
    EventKind.ACTIVATED: MemoryState.ACTIVE,
    EventKind.RESTORED: MemoryState.ACTIVE,
    EventKind.QUARANTINED: MemoryState.QUARANTINED,
    EventKind.EVICTED: MemoryState.RETIRED,
    EventKind.PURGED: MemoryState.PURGED,
}
_PINS = {EventKind.PINNED: True, EventKind.UNPINNED: False}
_UNKNOWN = "unknown"  # the horizon of what was imported before its event named one
_MAKES = (EventKind.CREATED, EventKind.IMPORTED)  # their detail may name the state, their note holds the proof


@dataclass(slots=True)
class _Facts:
    """One memory with all that is stored of it."""

    memory: MemoryRow
    episode: EpisodeRow | None
    keys: list[tuple[str, int, bytes]] = field(default_factory=list)
    state: str | None = None  # by the ledger
    pinned: bool = False  # by the ledger
    valid_until: str | None = None  # by the ledger
    proof: str | None = None  # as stored, perhaps sealed


class MemoryAudit:
    """``checked`` counts what was looked at, ``locked`` how many needed a key that is not here."""

    def __init__(self, database: Database, tensors: TensorStore | None, vault: Vault) -> None:
        """``tensors``: None where the store cannot be reached; then tensors and records are not looked at."""
        self._database = database
        self._tensors = tensors
        self._vault = vault
        self.checked: Counter[str] = Counter()
        self.locked = 0
        self.horizons: dict[tuple[str, str], datetime | None] = {}  # by the ledger, of memories with another one

    def run(self) -> Iterator[list[Finding]]:
        """What is wrong, page by page; at most one finding for each memory."""
        with self._database.read() as session:
            names = session.scalars(select(MemoryRow.namespace).distinct().order_by(MemoryRow.namespace)).all()
        for namespace in names:
            last = ""
            while ids := self._ids_after(namespace, last):
                yield [finding for one in self._page(namespace, ids) if (finding := self._twice(one))]
                last = ids[-1]

    def _ids_after(self, namespace: str, last: str) -> Sequence[str]:
        query = select(MemoryRow.id).where(MemoryRow.namespace == namespace, MemoryRow.id > last)
        with self._database.read() as session:
            return session.scalars(query.order_by(MemoryRow.id).limit(PAGE)).all()

    def _page(self, namespace: str, ids: Sequence[str]) -> Iterator[_Facts | Finding]:
        try:
            yield from self._load(namespace, ids)
        except Damaged as error:
            if len(ids) == 1:
                yield Finding(FindingKind.DAMAGED_ROW, ids[0], namespace, f"{error}")
                return
            for memory_id in ids:
                yield from self._page(namespace, [memory_id])

    def _twice(self, one: _Facts | Finding) -> Finding | None:
        """Look again before anything is said: on a live bank a tensor may just have been sealed anew, or purged."""
        if isinstance(one, Finding):
            self.checked["memories"] += 1
            return one
        found = self._look(one)
        if found is None:
            self.checked["memories"] += 1
            return None
        self.checked["memories"] += 1
        return self.again(one.memory.namespace, one.memory.id)

    def again(self, namespace: str, memory_id: str) -> Finding | None:
        """What is wrong with one memory now; None also when it is gone."""
        for one in self._page(namespace, [memory_id]):
            return one if isinstance(one, Finding) else self._look(one)
        return None

    # --- one memory -------------------------------------------------------------------------------------

    def _look(self, facts: _Facts) -> Finding | None:
        memory = facts.memory
        if facts.state is not None and facts.state != memory.state:
            problem = f"it is {memory.state}, the last event about it made it {facts.state}"
            return Finding(FindingKind.WRONG_STATE, memory.id, memory.namespace, problem)
        if facts.state is not None and facts.pinned != memory.pinned:
            problem = f"it is {'' if memory.pinned else 'not '}pinned, the ledger says otherwise"
            return Finding(FindingKind.WRONG_STATE, memory.id, memory.namespace, problem)
        if (wrong := self._wrong_horizon(facts)) is not None:
            return wrong
        if memory.state == MemoryState.QUARANTINED:
            return None  # known to be broken
        if (lacking := _incomplete(facts)) is not None:
            return Finding(FindingKind.DANGLING_ROW, memory.id, memory.namespace, lacking)
        if self._tensors is None:
            return None
        try:
            plain = self._tensor(memory, self._tensors)
            return self._record(facts, plain)
        except VaultLocked:
            self.locked += 1
            return None
        except TensorMissing as error:
            kind, problem = FindingKind.MISSING_TENSOR, str(error)
        except TensorCorrupt as error:
            kind, problem = FindingKind.ALTERED_TENSOR, str(error)
        except Damaged as error:
            kind, problem = FindingKind.ALTERED_RECORD, str(error)
        except StorageError as error:
            kind, problem = FindingKind.UNREADABLE_TENSOR, str(error)
        return Finding(kind, memory.id, memory.namespace, problem.removesuffix("; run `elm-agent doctor --repair`"))

    def _wrong_horizon(self, facts: _Facts) -> Finding | None:
        memory, known = facts.memory, facts.valid_until
        if facts.state is None or known == _UNKNOWN or known == horizon(memory.valid_until):
            return None
        try:
            until = None if known is None else datetime.fromisoformat(known).astimezone(UTC)
        except (ValueError, TypeError):
            return None  # of an event that was edited, which the chain says
        self.horizons[memory.namespace, memory.id] = until
        now = horizon(memory.valid_until)
        problem = f"its horizon of validity is {now or 'open'}, the ledger says {known or 'open'}"
        return Finding(FindingKind.WRONG_VALIDITY, memory.id, memory.namespace, problem)

    def _tensor(self, memory: MemoryRow, tensors: TensorStore) -> bytes:
        """The prompt's own bytes, checked against the record."""
        from elm_agent.adapters import from_bytes  # torch enters late: reading commands need none

        data = tensors.get(memory.namespace, memory.tensor_digest, cached=False)
        plain = self._vault.open_bytes(memory.namespace, data)
        recipe = rows.recipe_of(memory)
        from_bytes(plain, recipe=recipe, virtual_tokens=memory.virtual_tokens, width=memory.width)
        return plain

    def _record(self, facts: _Facts, plain: bytes) -> Finding | None:
        """Whether everything that never changes is still what the ledger bears witness to."""
        memory = facts.memory
        try:
            proof = rows.opened(self._vault, memory.namespace, facts.proof)
            if proof is None or not proof.startswith(PREFIX):
                self.checked["memories without a proof"] += 1  # made before the ledger kept one
                return None
            assert facts.episode is not None
            episode = rows.episode_record(facts.episode, self._vault)
            keys = [(kind, vector) for kind, _, vector in facts.keys]
            same = self._vault.open(memory.namespace, memory.question) == episode.question
            now = record_proof(episode, prompt=plain, keys=keys, model=memory.model, recipe=memory.recipe)
        except VaultLocked:
            raise
        except StorageError as error:
            return Finding(FindingKind.ALTERED_RECORD, memory.id, memory.namespace, str(error))
        self.checked["records proven"] += 1
        if now == proof and same:
            return None
        problem = "question, keys, prompt or rollouts are not those that the ledger bears witness to"
        return Finding(FindingKind.ALTERED_RECORD, memory.id, memory.namespace, problem)

    # --- reading ----------------------------------------------------------------------------------------

    def _load(self, namespace: str, ids: Sequence[str]) -> list[_Facts]:
        def of(table: Any, column: Any) -> Any:
            return select(table).where(table.namespace == namespace, column.in_(ids))

        kinds = [kind.value for kind in (*_BECOMES, *_PINS, EventKind.VALIDITY)]
        events = select(EventRow.memory_id, EventRow.kind, EventRow.detail, EventRow.note).where(
            EventRow.namespace == namespace, EventRow.memory_id.in_(ids), EventRow.kind.in_(kinds)
        )
        with self._database.read() as session:
            found = {row.id: _Facts(row, None) for row in session.scalars(of(MemoryRow, MemoryRow.id))}
            wanted = [facts.memory.episode_id for facts in found.values()]
            episodes = select(EpisodeRow).where(EpisodeRow.namespace == namespace, EpisodeRow.id.in_(wanted))
            by_id = {row.id: row for row in session.scalars(episodes)}
            keys = defaultdict(list)
            for row in session.scalars(of(KeyRow, KeyRow.memory_id)):
                keys[row.memory_id].append((row.kind, row.width, row.vector))
            for memory_id, kind, detail, note in session.execute(events.order_by(EventRow.revision)):
                if memory_id in found:
                    _follow(found[memory_id], EventKind(kind), detail, note)
        for memory_id, facts in found.items():
            facts.episode, facts.keys = by_id.get(facts.memory.episode_id), keys[memory_id]
        return [found[memory_id] for memory_id in sorted(found)]


def _follow(facts: _Facts, kind: EventKind, detail: dict[str, Any], note: str | None) -> None:
    if kind in _PINS:
        facts.pinned = _PINS[kind]
        return
    if kind is EventKind.VALIDITY:
        facts.valid_until = detail.get("valid_until")
        return
    facts.state = _BECOMES[kind].value
    if kind in _MAKES:
        facts.state, facts.proof = detail.get("state", facts.state), note
        facts.valid_until = detail.get("valid_until", _UNKNOWN if kind is EventKind.IMPORTED else None)


def _incomplete(facts: _Facts) -> str | None:
    if facts.episode is None:
        return "a memory without its episode"
    if KeyKind.INPUT.value not in {kind for kind, _, _ in facts.keys}:
        return "a memory without its input key"
    for kind, width, vector in facts.keys:
        if len(vector) != 4 * width or not abs(float(np.linalg.norm(rows.unpack(vector))) - 1.0) < 1e-3:
            return f"its {kind} key is not a unit vector of width {width}"
    return None
