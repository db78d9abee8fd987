"""What is known of memories by their uses, and the quarantine of those that harm. Trains and retrieves nothing.

Walls: in a namespace count its own uses of a memory and those of the namespace that the memory lives in. What a third
one does with a shared memory, or says of it, changes nothing here; and only uses in a memory's own namespace can
quarantine it, for a shared memory is read, never changed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from elm_agent.records import Effect, EventKind, MemoryState, Route, UseOutcome
from elm_agent.storage.ledger.changes import changing
from elm_agent.storage.lifecycle import transition
from elm_agent.storage.posterior import Evidence, HarmRule, Kind, posterior
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.paging import some
from elm_agent.storage.sql.schema import EventRow, MemoryRow, UseRow
from elm_agent.storage.vault.base import Vault

ACTOR = "policy:harm"
KEEP = "keep"
"""The verdict of a review that says: it is fine."""

_log = logging.getLogger(__name__)


def read_evidence(
    session: Session, viewer: str, home: str, ids: Collection[str], *, since: datetime | None = None
) -> dict[str, Evidence]:
    """By memory of ``home``, for each of ``ids``: what counts in namespace ``viewer``; uses from ``since`` on."""
    found: dict[str, dict[Kind, int]] = {memory_id: {} for memory_id in ids}
    columns = UseRow.memory_id, UseRow.route, UseRow.outcome, UseRow.feedback_effect
    query = select(*columns, func.count()).where(UseRow.memory_namespace == home)
    query = query.where(UseRow.namespace.in_({viewer, home})).group_by(*columns)
    if since is not None:
        query = query.where(UseRow.created_at >= since)
    for piece in some(found):
        for memory_id, route, outcome, effect, count in session.execute(query.where(UseRow.memory_id.in_(piece))):
            kind = Route(route), UseOutcome(outcome), None if effect is None else Effect(effect)
            found[memory_id][kind] = count
    return dict(found)


class HarmWatch:
    """Looks at a memory after each use of it, once that use is committed. Without a rule it looks at nothing.

    Of uses at once, the one that looks last sees all of them, so none is missed; a process that dies in between
    leaves the look to the next use.
    """

    def __init__(self, database: Database, vault: Vault, rule: HarmRule | None) -> None:
        self._database = database
        self._vault = vault
        self._rule = rule

    def look(self, namespace: str, memory_id: str) -> bool:
        """Quarantine an active memory that breaks the rule, unless it is pinned; whether that was done now.

        Counted are uses since it came into its state, or since a review said ``keep``: what a person brought back is
        judged anew. The reason says the numbers. Raises ``StorageError``, ``BankMoved``.
        """
        if self._rule is None:
            return False
        with self._database.read() as session:
            if self._why(session, namespace, memory_id) is None:
                return False
        with changing(self._database, namespace, actor=ACTOR, vault=self._vault) as change:
            reason = self._why(change.session, namespace, memory_id)  # again: it may have been pinned or restored
            if reason is None:
                return False
            memory = change.session.get_one(MemoryRow, (namespace, memory_id))
            transition(change, memory, MemoryState.QUARANTINED, reason)
        _log.warning("memory %s is quarantined: %s", memory_id, reason)
        return True

    def _why(self, session: Session, namespace: str, memory_id: str) -> str | None:
        assert self._rule is not None
        memory = session.get(MemoryRow, (namespace, memory_id))
        if memory is None or memory.state != MemoryState.ACTIVE or memory.pinned:
            return None
        since = max([memory.state_since, *_last_keep(session, namespace, memory_id)])
        evidence = read_evidence(session, namespace, namespace, [memory_id], since=since)[memory_id]
        return self._rule.broken_by(posterior(evidence, self._rule.weights))


def _last_keep(session: Session, namespace: str, memory_id: str) -> list[datetime]:
    """When a review last said that the memory is fine: one time, or none."""
    query = select(EventRow.created_at, EventRow.detail).where(
        EventRow.namespace == namespace, EventRow.memory_id == memory_id, EventRow.kind == EventKind.REVIEWED.value
    )
    reviews: list[Any] = [*session.execute(query.order_by(EventRow.revision.desc()))]
    return [at for at, detail in reviews if detail.get("verdict") == KEEP][:1]
