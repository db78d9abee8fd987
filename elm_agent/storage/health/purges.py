"""Is what was purged gone: rows, notes, files, packs? A purge that was interrupted is finished."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from elm_agent.storage import purge
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.findings import Finding, FindingKind
from elm_agent.storage.sql.schema import ExportRow, MemoryRow, TombstoneRow


def unpurged(bank: Bank, checked: Counter[str], *, before: datetime) -> Iterator[Finding]:
    """Rows that came back, purges that were interrupted before ``before``, packs that still hold what was purged."""
    row = (MemoryRow.namespace == TombstoneRow.namespace) & (MemoryRow.id == TombstoneRow.memory_id)
    out = (ExportRow.namespace == TombstoneRow.namespace) & (ExportRow.memory_id == TombstoneRow.memory_id)
    with bank.database.read() as session:
        checked["tombstones"] += session.scalar(select(func.count()).select_from(TombstoneRow)) or 0
        checked["exports"] += session.scalar(select(func.count()).select_from(ExportRow)) or 0
        back = session.execute(select(MemoryRow.namespace, MemoryRow.id).join(TombstoneRow, row)).all()
        pending = session.scalars(select(TombstoneRow).where(TombstoneRow.pending.is_not(None))).all()
        copies = session.scalars(select(ExportRow).join(TombstoneRow, out)).all()
    for namespace, memory_id in back:
        yield Finding(FindingKind.UNPURGED, memory_id, namespace, "it was purged, and its rows are here again")
    for stone in pending:
        if stone.purged_at > before:
            checked["purges in flight"] += 1
            continue
        problem = "its purge was interrupted: files or index entries may be left"
        yield Finding(FindingKind.UNFINISHED_PURGE, stone.memory_id, stone.namespace, problem)
    for copy in copies:
        if Path(copy.path).exists():
            problem = f"it was purged, and the pack {copy.path} still holds it: delete that file"
            yield Finding(FindingKind.EXPORTED_COPY, copy.memory_id, copy.namespace, problem)


def finish(bank: Bank, finding: Finding, *, actor: str) -> None:
    """Do what was left undone. Raises ``NotFound``, ``BankMoved``, ``StorageError``."""
    assert finding.namespace is not None
    if finding.kind is FindingKind.UNPURGED:
        options: dict[str, Any] = {"actor": actor, "reason": finding.problem, "tell": _silent, "even_pinned": True}
        purge.purge(bank, finding.namespace, [finding.subject], **options)
    else:
        bank.finish_purges(finding.namespace)


def _silent(step: str, detail: dict[str, Any]) -> None:
    """An observer that nobody listens to."""
