"""Does a durable index hold the active memories, no more and no fewer? And what is done when it does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from elm_agent.records import KeyKind, MemoryState
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.findings import Finding, FindingKind
from elm_agent.storage.indexes.feed import FedIndex
from elm_agent.storage.sql.schema import KeyRow, MemoryRow, OutboxRow, WatermarkRow

REBUILD_ABOVE = 100  # wrong entries of an index; beyond this it is wiped and fed as a whole


def wrong_entries(bank: Bank, index: FedIndex, namespace: str, checked: Counter[str]) -> Iterator[Finding]:
    """Compare the index with the rows; what changed since its watermark is still to be fed, so not wrong.

    Raises ``IndexUnavailable``.
    """
    with bank.database.read() as session:
        row = None if index.rebuilt else session.get(WatermarkRow, (namespace, index.name))
    mark = row.revision if row else 0
    for kind in KeyKind:
        indexed = index.ids(namespace, kind)
        with bank.database.read() as session:
            active, pending = _active(session, namespace, kind), _pending(session, namespace, kind, mark)
        checked["index entries"] += len(indexed)
        checked["index changes to feed"] += len(pending)
        for memory_id in sorted(active - indexed - pending):
            problem = f"an active memory that the {kind} index does not have"
            yield Finding(FindingKind.MISSING_ENTRY, memory_id, namespace, problem)
        for memory_id in sorted(indexed - active - pending):
            problem = f"the {kind} index has an id that is no active memory"
            yield Finding(FindingKind.SURPLUS_ENTRY, memory_id, namespace, problem)


def mend_entries(bank: Bank, index: FedIndex, wrong: Sequence[Finding], *, actor: str) -> list[Finding]:
    """The findings with what was done about them. Raises ``IndexUnavailable``."""
    if len(wrong) > REBUILD_ABOVE:
        index.wipe()
        bank.feed()
        return [replace(finding, action="the whole index was fed anew") for finding in wrong]
    memories = {(finding.namespace, finding.subject) for finding in wrong}
    with bank.database.read() as session:
        known = {pair for pair in memories if session.get(MemoryRow, pair) is not None}
    for namespace, memory_id in sorted((ns, memory) for ns, memory in memories if ns is not None):
        # the entry goes first, of either kind; the outbox then brings back what belongs there, in order
        for kind in KeyKind:
            index.apply(namespace, kind, [], [memory_id])
        if (namespace, memory_id) in known:
            bank.repaired(namespace, memory_id, actor=actor, detail={"index": index.name})
    bank.feed()
    actions = {True: "told the index again", False: "deleted from the index"}
    return [replace(finding, action=actions[(finding.namespace, finding.subject) in known]) for finding in wrong]


def _active(session: Session, namespace: str, kind: KeyKind) -> set[str]:
    memory = (MemoryRow.namespace == KeyRow.namespace) & (MemoryRow.id == KeyRow.memory_id)
    query = select(KeyRow.memory_id).join(MemoryRow, memory).where(KeyRow.namespace == namespace)
    return set(session.scalars(query.where(KeyRow.kind == kind.value, MemoryRow.state == MemoryState.ACTIVE)))


def _pending(session: Session, namespace: str, kind: KeyKind, mark: int) -> set[str]:
    query = select(OutboxRow.memory_id).where(OutboxRow.namespace == namespace, OutboxRow.revision > mark)
    return set(session.scalars(query.where(OutboxRow.kind == kind.value)))
