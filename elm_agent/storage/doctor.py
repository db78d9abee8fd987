"""Does everything that a bank keeps agree with everything else? Finds, and mends what can be proven.

The database is the truth: a tensor that no row names is rubbish, a memory whose tensor is gone or altered is
quarantined, an index is fed again. Safe while the bank is in use: what could be a publication in flight is young
and left alone, and stuck jobs are taken back first, so that no paused worker can publish what was collected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from elm_agent.errors import IndexUnavailable, StorageError, TensorCorrupt, TensorMissing
from elm_agent.records import KeyKind, MemoryState, utcnow
from elm_agent.storage import audit
from elm_agent.storage.audit import Finding, FindingKind
from elm_agent.storage.bank import Bank
from elm_agent.storage.feed import FedIndex
from elm_agent.storage.schema import EpisodeRow, JobRow, KeyRow, MemoryRow, OutboxRow, UseRow, WatermarkRow

__all__ = ["Finding", "FindingKind", "Report", "examine"]

ACTOR = "doctor"
STUCK_SECONDS = 300.0  # a lease that has been over for so long; a live worker would have taken the job over
GRACE_SECONDS = 3600.0  # a tensor lies unnamed for milliseconds while it is published; this is far beyond
_REBUILD_ABOVE = 100  # wrong entries of an index; beyond this it is wiped and fed as a whole


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at and what was wrong. ``skipped``: what could not be looked at, and why."""

    findings: tuple[Finding, ...]
    checked: dict[str, int]
    skipped: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Nothing was wrong."""
        return not self.findings

    @property
    def left(self) -> tuple[Finding, ...]:
        """What was wrong and still is."""
        return tuple(finding for finding in self.findings if finding.action is None)


def examine(bank: Bank, *, repair: bool = False, now: datetime | None = None) -> Report:
    """Check jobs, rows, tensors, files and the durable index of every namespace; with ``repair`` mend them.

    ``now``: judge ages as if it were this time (aware); by default the clock of the database and of the files.
    The in-memory exact index is not checked: every process makes its own from the rows.

    Raises:
        StorageError: the database or the folder of tensors cannot be used at all.
    """
    visit = _Visit(bank, repair, now)
    visit.jobs()  # first: see the module
    visit.rows()
    visit.memories()
    visit.tensors()
    visit.index()
    return Report(tuple(visit.findings), dict(visit.checked), tuple(visit.skipped))


class _Visit:
    def __init__(self, bank: Bank, repair: bool, now: datetime | None) -> None:
        self.bank = bank
        self.repair = repair
        self.now = now
        self.grace = GRACE_SECONDS - ((now - utcnow()).total_seconds() if now else 0.0)
        self.findings: list[Finding] = []
        self.checked: Counter[str] = Counter()
        self.skipped: list[str] = []

    # --- the database -----------------------------------------------------------------------------------

    def jobs(self) -> None:
        with self._session() as session:
            now = self.now or self.bank.database.now(session)
            before = now - timedelta(seconds=STUCK_SECONDS)
            self.checked["jobs"] += session.scalar(select(func.count()).select_from(JobRow)) or 0
            self.findings += audit.stuck_jobs(session, before=before, now=now, repair=self.repair)
            self.findings += audit.jobs_without_memory(session, now=now, repair=self.repair)

    def rows(self) -> None:
        with self._session() as session:
            for table in (KeyRow, UseRow, OutboxRow, EpisodeRow):
                self.checked["rows"] += session.scalar(select(func.count()).select_from(table)) or 0
            self.findings += audit.rows_without_memory(session, repair=self.repair)
            incomplete = list(audit.incomplete_memories(session))
        for finding in incomplete:
            self._quarantine(finding)

    def memories(self) -> None:
        """Every memory that could be used: is its tensor there, and is it what the record says?"""
        query = select(MemoryRow).where(MemoryRow.state != MemoryState.QUARANTINED)
        with self.bank.database.read() as session:
            memories = session.scalars(query.order_by(MemoryRow.namespace, MemoryRow.id)).all()
        found = [finding for memory in memories if (finding := self._tensor_of(memory))]
        self.checked["memories"] += len(memories)
        missing = sum(finding.kind is FindingKind.MISSING_TENSOR for finding in found)
        if missing == len(memories) > 1:  # a folder that is not mounted must not cost the whole bank
            self.findings += [
                replace(finding, problem=f"{finding.problem} (as all others are: is the right folder mounted?)")
                for finding in found
            ]
            return
        for finding in found:
            if finding.kind is FindingKind.UNREADABLE_TENSOR:
                self.findings.append(finding)
            else:
                self._quarantine(finding)

    def _tensor_of(self, memory: MemoryRow) -> Finding | None:
        from elm_agent.softprompt import from_bytes  # torch enters late: reading commands need none

        try:
            data = self.bank.tensors.get(memory.namespace, memory.tensor_digest, cached=False)
            from_bytes(data, shape=(memory.virtual_tokens, memory.width))
        except TensorMissing as error:
            kind, problem = FindingKind.MISSING_TENSOR, str(error)
        except TensorCorrupt as error:
            kind, problem = FindingKind.ALTERED_TENSOR, str(error)
        except StorageError as error:
            kind, problem = FindingKind.UNREADABLE_TENSOR, str(error)
        else:
            return None
        return Finding(kind, memory.id, memory.namespace, problem.removesuffix("; run `elm-agent doctor --repair`"))

    def _quarantine(self, finding: Finding) -> None:
        if self.repair and finding.namespace is not None:
            self.bank.transition(
                finding.namespace, finding.subject, MemoryState.QUARANTINED, actor=ACTOR, reason=finding.problem
            )
            advice = f"quarantined; when it is whole again, `elm-agent memories restore {finding.subject}`"
            finding = replace(finding, action=advice)
        self.findings.append(finding)

    # --- the tensor store -------------------------------------------------------------------------------

    def tensors(self) -> None:
        """Tensors that no memory names, and files that a killed writer left."""
        store = self.bank.tensors
        # listed before the rows are read: what is published meanwhile has a row
        stored = {(namespace, digest) for namespace in store.namespaces() for digest in store.digests(namespace)}
        with self.bank.database.read() as session:
            rows = session.execute(select(MemoryRow.namespace, MemoryRow.tensor_digest).distinct())
            named = {(namespace, digest) for namespace, digest in rows}
        self.checked["tensors"] += len(stored)
        for namespace, digest in sorted(stored - named):
            self._orphan(namespace, digest)
        left = store.sweep(self.grace) if self.repair else store.temporary(self.grace)
        action = "deleted" if self.repair else None
        problem = "a temporary file of a writer that was killed"
        self.findings += [Finding(FindingKind.TEMPORARY_FILE, name, None, problem, action) for name in left]

    def _orphan(self, namespace: str, digest: str) -> None:
        try:
            age = self.bank.tensors.age(namespace, digest)
        except TensorMissing:  # somebody else has just collected it
            return
        if age < self.grace:
            self.checked["tensors in flight"] += 1
            return
        action = None
        if self.repair:
            if not self.bank.tensors.delete(namespace, digest, older_than_seconds=self.grace):
                return  # stored again meanwhile: it is being published
            action = "deleted"
        self.findings.append(Finding(FindingKind.ORPHAN_TENSOR, digest, namespace, "no memory names it", action))

    # --- the durable index ------------------------------------------------------------------------------

    def index(self) -> None:
        index = self.bank.durable
        served = [info.name for info in self.bank.namespaces() if self.bank.uses_durable()]
        if index is None or not served:
            if served:
                self.skipped.append("the durable index is not open here: examine it in the process that owns it")
            return
        try:
            if self.repair:
                self.bank.feed()
            wrong = [finding for namespace in served for finding in self._entries(index, namespace)]
            self.findings += self._mend_index(index, wrong) if self.repair and wrong else wrong
        except IndexUnavailable as error:
            self.skipped.append(f"the {index.name} index: {error}")

    def _entries(self, index: FedIndex, namespace: str) -> Iterable[Finding]:
        """Compare the index with the rows; what changed since its watermark is still to be fed, so not wrong."""
        with self.bank.database.read() as session:
            row = None if index.rebuilt else session.get(WatermarkRow, (namespace, index.name))
        mark = row.revision if row else 0
        for kind in KeyKind:
            indexed = index.ids(namespace, kind)
            with self.bank.database.read() as session:
                active, pending = _active(session, namespace, kind), _pending(session, namespace, kind, mark)
            self.checked["index entries"] += len(indexed)
            self.checked["index changes to feed"] += len(pending)
            for memory_id in sorted(active - indexed - pending):
                problem = f"an active memory that the {kind} index does not have"
                yield Finding(FindingKind.MISSING_ENTRY, memory_id, namespace, problem)
            for memory_id in sorted(indexed - active - pending):
                problem = f"the {kind} index has an id that is no active memory"
                yield Finding(FindingKind.SURPLUS_ENTRY, memory_id, namespace, problem)

    def _mend_index(self, index: FedIndex, wrong: list[Finding]) -> list[Finding]:
        if len(wrong) > _REBUILD_ABOVE:
            index.wipe()
            self.bank.feed()
            return [replace(finding, action="the whole index was fed anew") for finding in wrong]
        memories = {(finding.namespace, finding.subject) for finding in wrong}
        with self.bank.database.read() as session:
            known = {pair for pair in memories if session.get(MemoryRow, pair) is not None}
        for namespace, memory_id in sorted((ns, memory) for ns, memory in memories if ns is not None):
            # the entry goes first, of either kind; the outbox then brings back what belongs there, in order
            for kind in KeyKind:
                index.apply(namespace, kind, [], [memory_id])
            if (namespace, memory_id) in known:
                self.bank.repaired(namespace, memory_id, actor=ACTOR, detail={"index": index.name})
        self.bank.feed()
        actions = {True: "told the index again", False: "deleted from the index"}
        return [replace(finding, action=actions[(finding.namespace, finding.subject) in known]) for finding in wrong]

    def _session(self) -> AbstractContextManager[Session]:
        open_session: Callable[[], AbstractContextManager[Session]]
        open_session = self.bank.database.write if self.repair else self.bank.database.read
        return open_session()


def _active(session: Session, namespace: str, kind: KeyKind) -> set[str]:
    memory = (MemoryRow.namespace == KeyRow.namespace) & (MemoryRow.id == KeyRow.memory_id)
    query = select(KeyRow.memory_id).join(MemoryRow, memory).where(KeyRow.namespace == namespace)
    return set(session.scalars(query.where(KeyRow.kind == kind.value, MemoryRow.state == MemoryState.ACTIVE)))


def _pending(session: Session, namespace: str, kind: KeyKind, mark: int) -> set[str]:
    query = select(OutboxRow.memory_id).where(OutboxRow.namespace == namespace, OutboxRow.revision > mark)
    return set(session.scalars(query.where(OutboxRow.kind == kind.value)))
