"""One memory takes the place of others, in one transaction; and who took whose place, as the ledger tells it.

The others retire, so whoever wants them back restores them. Lineage lies in the events alone: ``merged`` on the
memory that took the place names those it came for, ``evicted`` on each of these names it. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elm_agent.errors import ChangedMeanwhile
from elm_agent.records import EventKind, EventRecord, MemoryState
from elm_agent.storage.ledger.changes import Change, find_memory
from elm_agent.storage.lifecycle import transition

SUPERSEDES, SUPERSEDED_BY = "supersedes", "superseded_by"
"""In the details of events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """``supersedes``: whose place a memory took, all of them ever. ``superseded_by``: who took its own; None: nobody,
    or it was restored since. ``restored``: somebody brought it back after its place had been taken."""

    supersedes: tuple[str, ...] = ()
    superseded_by: str | None = None
    restored: bool = False


def lineage_of(events: Sequence[EventRecord]) -> Lineage:
    """The lineage of one memory, from its events, oldest first."""
    before: dict[str, None] = {}
    by, restored = None, False
    for event in events:
        if event.kind is EventKind.MERGED:
            before |= dict.fromkeys(event.detail.get(SUPERSEDES, ()))
        elif event.kind is EventKind.EVICTED and SUPERSEDED_BY in event.detail:
            by, restored = event.detail[SUPERSEDED_BY], False
        elif event.kind is EventKind.RESTORED and by is not None:
            by, restored = None, True
    return Lineage(supersedes=tuple(before), superseded_by=by, restored=restored)


def supersede(change: Change, successor_id: str, going: Mapping[str, int], *, detail: Mapping[str, Any]) -> None:
    """Retire ``going`` (revisions by id, as the caller saw them) for ``successor_id``, and note it on both sides.

    Raises:
        NotFound: one of them is gone.
        ChangedMeanwhile: one was changed since, is pinned, or does not serve. The caller's transaction is to end.
    """
    successor = find_memory(change.session, change.namespace.name, successor_id)
    if successor.state != MemoryState.ACTIVE:
        raise ChangedMeanwhile(f"memory {successor_id} is {successor.state} by now: nothing retires for it")
    for memory_id, revision in sorted(going.items()):
        memory = find_memory(change.session, change.namespace.name, memory_id)
        if memory.revision != revision or memory.pinned or memory.state != MemoryState.ACTIVE:
            raise ChangedMeanwhile(f"memory {memory_id} was changed meanwhile: nothing was done; look again")
        why = f"superseded by {successor_id}"
        transition(change, memory, MemoryState.RETIRED, why, {SUPERSEDED_BY: successor_id})
    told = dict(detail) | {SUPERSEDES: sorted(going)}
    change.note(EventKind.MERGED, successor, told)
