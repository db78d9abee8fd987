"""One change of one memory inside a transaction: the next revision, an event, and work for the indexes.

Every change goes through here, so that events and outbox have no gaps. The namespace's row stays locked until
the transaction ends: changes of one namespace happen one after the other, and become visible in that order.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from elm_agent.errors import NotFound
from elm_agent.records import EventKind, KeyKind, MemoryState
from elm_agent.storage.schema import EventRow, KeyRow, MemoryRow, NamespaceRow, OutboxRow


def lock_namespace(session: Session, namespace: str) -> NamespaceRow:
    """The namespace's row, held until the transaction ends. Raises ``NotFound``.

    Foreign keys may still point at it (FOR NO KEY UPDATE): queueing a job does not wait for a publication.
    """
    query = select(NamespaceRow).where(NamespaceRow.name == namespace).with_for_update(key_share=True)
    row = session.scalars(query).first()
    if row is None:
        raise NotFound(f"namespace {namespace!r} is not in this bank: bind it to a model first")
    return row


def find_memory(session: Session, namespace: str, memory_id: str) -> MemoryRow:
    """Raises ``NotFound``, also for a memory of another namespace."""
    row = session.get(MemoryRow, (namespace, memory_id))
    if row is None:
        raise NotFound(
            f"no memory {memory_id[:80]!r} in namespace {namespace!r}: `elm-agent memories list` shows what there is"
        )
    return row


def append(
    session: Session,
    namespace: NamespaceRow,
    kind: EventKind,
    memory: MemoryRow,
    *,
    actor: str,
    detail: dict[str, Any],
    now: datetime,
    reindex: bool,
) -> None:
    """Count the change, write its event and, with ``reindex``, tell the indexes whether the memory is active."""
    namespace.revision += 1
    memory.revision = namespace.revision
    memory.updated_at = now
    at = {"namespace": namespace.name, "revision": namespace.revision, "memory_id": memory.id}
    session.add(EventRow(**at, kind=kind.value, actor=actor, detail=detail, created_at=now))
    if not reindex:
        return
    session.flush()
    keys = select(KeyRow.kind).where(KeyRow.namespace == namespace.name, KeyRow.memory_id == memory.id)
    present = memory.state == MemoryState.ACTIVE
    for n, key_kind in enumerate(sorted(session.scalars(keys))):
        session.add(OutboxRow(**at, n=n, kind=KeyKind(key_kind).value, present=present))
