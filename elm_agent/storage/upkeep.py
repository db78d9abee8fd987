"""What keeps a bank's own records small and true: uses counted into the chain, the outbox pruned. In short steps.

Both may be stopped or killed anywhere and run by several processes at once: a step is one transaction that holds the
namespace, and looks anew at what is left to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from elm_agent.protocols import Observer
from elm_agent.records import EventKind
from elm_agent.storage.ledger.changes import Change, changing
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import EventRow, OutboxRow, UseRow, WatermarkRow
from elm_agent.storage.vault.base import Vault

BATCH = 200  # memories of one transaction
_ROWS = 2000  # of the outbox, about, in one transaction
STALE = timedelta(days=30)  # an index that lacks a change this old is not waited for
KEPT = 1000  # newest revisions that stay in the outbox, so that running processes need not load their index anew


def count_uses(database: Database, namespace: str, *, actor: str, vault: Vault, tell: Observer) -> Iterator[int]:
    """Write the uses that no event counts yet into the chain: one ``used`` event for each memory, over all of them.

    Yields how many events each step wrote. The event tells how many uses there were, and how many of each route and
    outcome; ``uses.ledgered`` then names it, so that no use is counted twice. An outcome that is settled later stays
    out of the chain.
    """
    while True:
        with changing(database, namespace, actor=actor, vault=vault) as change:
            written = _count_some(change)
            change.session.flush()
            tell("uses.before_commit", {"namespace": namespace, "memories": written})
        tell("uses.committed", {"namespace": namespace, "memories": written})
        if not written:
            return
        yield written


def _count_some(change: Change) -> int:
    name = change.namespace.name
    uncounted = UseRow.memory_namespace == name, UseRow.ledgered.is_(None)
    # what lies first in the index, so that a step costs the same however much waits
    first = select(UseRow.memory_id).where(*uncounted).limit(10 * BATCH).subquery()
    memory_ids = change.session.scalars(select(first.c.memory_id).distinct().limit(BATCH)).all()
    for memory_id in sorted(memory_ids):
        revision = change.namespace.revision + 1
        # marked first, counted after: a use that comes in between is for the next event
        mark = update(UseRow).where(*uncounted, UseRow.memory_id == memory_id).values(ledgered=revision)
        change.session.execute(mark.execution_options(synchronize_session=False))
        change.append(EventKind.USED, memory_id, _counts(change, memory_id, revision))
    return len(memory_ids)


def _counts(change: Change, memory_id: str, revision: int) -> dict[str, Any]:
    query = (
        select(UseRow.route, UseRow.outcome, func.count())
        .where(UseRow.memory_namespace == change.namespace.name, UseRow.memory_id == memory_id)
        .where(UseRow.ledgered == revision)
        .group_by(UseRow.route, UseRow.outcome)
    )
    routes: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for route, outcome, count in change.session.execute(query):
        routes[route] += count
        outcomes[outcome] += count
    return {"uses": routes.total(), "routes": dict(routes), "outcomes": dict(outcomes)}


def prune_outbox(
    database: Database, namespace: str, *, actor: str, vault: Vault, tell: Observer, keep: int = KEPT
) -> Iterator[int]:
    """Delete the index work that every index has done, but for the newest ``keep`` revisions.

    Yields how many rows each step deleted. Waited for is an index with a watermark, unless it is stale (see
    ``stale_indexes``); a stale or unknown one, and a process whose own index is behind ``outbox_floor``, loads the
    active keys anew when it comes back.
    """
    while True:
        with changing(database, namespace, actor=actor, vault=vault) as change:
            row, session = change.namespace, change.session
            stale = stale_indexes(session, namespace, now=change.now)
            known = select(func.min(WatermarkRow.revision)).where(WatermarkRow.namespace == namespace)
            seen = session.scalar(known.where(WatermarkRow.index_name.not_in(stale)))
            upto = row.revision - keep if seen is None else min(seen, row.revision - keep)
            upto = _next_floor(change, upto)
            if upto <= row.outbox_floor:
                return
            old = delete(OutboxRow).where(OutboxRow.namespace == namespace, OutboxRow.revision <= upto)
            deleted = int(session.execute(old).rowcount)  # type: ignore[attr-defined]
            row.outbox_floor = upto
            session.flush()
            tell("outbox.before_commit", {"namespace": namespace, "rows": deleted})
        tell("outbox.committed", {"namespace": namespace, "rows": deleted})
        yield deleted


def stale_indexes(session: Session, namespace: str, *, now: datetime) -> dict[str, int]:
    """The watermarks of indexes that nobody has fed for so long that they lack a change older than ``STALE``."""
    next_event = (EventRow.namespace == WatermarkRow.namespace) & (EventRow.revision == WatermarkRow.revision + 1)
    query = select(WatermarkRow.index_name, WatermarkRow.revision).join(EventRow, next_event)
    query = query.where(WatermarkRow.namespace == namespace, EventRow.created_at < now - STALE)
    return {row.index_name: row.revision for row in session.execute(query)}


def _next_floor(change: Change, upto: int) -> int:
    """``upto``, or where about ``_ROWS`` rows of index work lie below it."""
    work = select(OutboxRow.revision).where(
        OutboxRow.namespace == change.namespace.name, OutboxRow.revision > change.namespace.outbox_floor
    )
    last = change.session.scalar(work.order_by(OutboxRow.revision).offset(_ROWS).limit(1))
    return upto if last is None else min(upto, last)
