"""Which state a memory may go to from which, and what is written when it does. One change within a transaction."""

from __future__ import annotations

from typing import Any

from elm_agent.errors import InputError
from elm_agent.records import EventKind, MemoryState
from elm_agent.storage.ledger.changes import Change
from elm_agent.storage.sql.rows import sealed
from elm_agent.storage.sql.schema import MemoryRow

_BECOMES = {
    (MemoryState.CANDIDATE, MemoryState.ACTIVE): EventKind.ACTIVATED,
    (MemoryState.RETIRED, MemoryState.ACTIVE): EventKind.RESTORED,
    (MemoryState.QUARANTINED, MemoryState.ACTIVE): EventKind.RESTORED,
    (MemoryState.CANDIDATE, MemoryState.RETIRED): EventKind.EVICTED,
    (MemoryState.ACTIVE, MemoryState.RETIRED): EventKind.EVICTED,
    (MemoryState.QUARANTINED, MemoryState.RETIRED): EventKind.EVICTED,
    (MemoryState.CANDIDATE, MemoryState.QUARANTINED): EventKind.QUARANTINED,
    (MemoryState.ACTIVE, MemoryState.QUARANTINED): EventKind.QUARANTINED,
    (MemoryState.RETIRED, MemoryState.QUARANTINED): EventKind.QUARANTINED,
}


def transition(
    change: Change, memory: MemoryRow, to: MemoryState, reason: str | None, detail: dict[str, Any] | None = None
) -> None:
    """Put ``memory`` into state ``to``. The state it has is no change. ``detail``: more for the event, see its rules.

    Raises ``InputError`` when it is pinned and to be evicted, or when there is no way from its state to ``to``.
    """
    was = MemoryState(memory.state)
    if was == to:
        return
    kind = _BECOMES.get((was, to))
    if kind is None:
        how = "only `purge` removes for good" if to == MemoryState.PURGED else f"it cannot become {to} again"
        raise InputError(f"memory {memory.id} is {was}: {how}")
    if to == MemoryState.RETIRED and memory.pinned:
        raise InputError(f"memory {memory.id} is pinned: unpin it before it is evicted")
    memory.state = to.value
    memory.state_since = change.now
    memory.reason = sealed(change.vault, memory.namespace, reason)
    memory.review = None  # whoever changed it knew better
    told = {"from": was.value, "to": to.value} | (detail or {})
    change.note(kind, memory, told, text=reason, reindex=True)
