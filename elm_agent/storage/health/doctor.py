"""Does everything that a bank keeps agree with everything else? Finds, and mends what can be proven.

The database is the truth: a tensor that no row names is rubbish, a memory whose tensor is gone or altered is
quarantined, an index is fed again, an interrupted purge is finished. Above the rows stands the ledger: a memory that
is not what its chain bears witness to is quarantined; a broken chain can only be said. Safe while the bank is in use:
what could be a publication in flight is young and left alone, and stuck jobs are taken back first, so that no paused
worker can publish what was collected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from elm_agent.errors import BankMoved, IndexUnavailable, NotFound, StorageError, VaultLocked
from elm_agent.records import MemoryState, utcnow
from elm_agent.storage import upkeep
from elm_agent.storage.bank import Bank
from elm_agent.storage.health import audit
from elm_agent.storage.health import contents as audit_contents
from elm_agent.storage.health import files as audit_files
from elm_agent.storage.health import indexes as audit_index
from elm_agent.storage.health import purges as audit_purges
from elm_agent.storage.health import tensors as audit_tensors
from elm_agent.storage.health.findings import Finding, FindingKind, Report
from elm_agent.storage.health.memories import MemoryAudit
from elm_agent.storage.ledger import chain
from elm_agent.storage.sql.schema import (
    EpisodeRow,
    JobRow,
    KeyRow,
    MemoryRow,
    NamespaceRow,
    OutboxRow,
    UseRow,
)

__all__ = ["Finding", "FindingKind", "Report", "examine"]

ACTOR = "doctor"
STUCK_SECONDS = 300.0  # a lease that has been over for so long; a live worker would have taken the job over
GRACE_SECONDS = 3600.0  # a tensor lies unnamed for milliseconds while it is published; this is far beyond
PURGE_SECONDS = 300.0  # a purge cleans its files in the seconds after its commit
CLOCK_SECONDS = 300.0  # by which clocks of several machines may differ
_UNTOUCHED = frozenset({FindingKind.UNREADABLE_TENSOR, FindingKind.DAMAGED_ROW})  # nothing proven about the memory

Progress = Callable[[str, int, int], None]
"""``progress(what is being checked, done, in all)``."""


def examine(
    bank: Bank, *, repair: bool = False, now: datetime | None = None, progress: Progress | None = None
) -> Report:
    """Check database, jobs, rows, ledger, memories, tensors, files and indexes; with ``repair`` mend them.

    ``now``: judge ages as if it were this time (aware); by default the clock of the database and of the files.

    Raises:
        StorageError: the database cannot be used at all. A store of tensors that cannot be reached is skipped.
    """
    visit = _Visit(bank, repair, now, progress or (lambda _what, _done, _total: None))
    if visit.database():  # nothing can be concluded from the rows of a damaged file
        visit.reach()
        visit.jobs()  # before tensors: see the module
        visit.rows()
        visit.purged()
        visit.ledger()
        visit.memories()
        visit.contents()
        visit.tensors()
        visit.index()
        visit.unfed()
    return Report(
        tuple(visit.findings), dict(visit.checked), tuple(visit.skipped), visit.incomplete, tuple(visit.notes)
    )


class _Visit:
    def __init__(self, bank: Bank, repair: bool, now: datetime | None, progress: Progress) -> None:
        self.bank = bank
        self.repair = repair
        self.progress = progress
        with bank.database.read() as session:
            self.now = now or bank.database.now(session)
            found = session.execute(select(NamespaceRow.name, NamespaceRow.moved_to).order_by(NamespaceRow.name))
            self.moved = {row.name: row.moved_to for row in found}
        self.grace = GRACE_SECONDS - ((now - utcnow()).total_seconds() if now else 0.0)
        self.findings: list[Finding] = []
        self.incomplete = False
        self.notes: list[str] = []
        self.checked: Counter[str] = Counter(namespaces=len(self.moved))
        self.skipped = [
            f"repairs in namespace {name!r}: it was moved to {to}" for name, to in self.moved.items() if to and repair
        ]

    # --- the database -----------------------------------------------------------------------------------

    def database(self) -> bool:
        """Whether its rows can be believed."""
        self.progress("database", 0, 1)
        with self.bank.database.read() as session:
            self.findings += audit.missing_columns(session)
            self.findings += audit.damaged_pages(session)
        self.checked["database"] += 1
        self.progress("database", 1, 1)
        if self.findings:
            self.skipped.append("everything else: the database itself is damaged; restore it from a backup")
        return not self.findings

    def reach(self) -> None:
        """Whether the store of tensors answers: without it each of a million memories would wait for it."""
        try:
            audit_tensors.ask(self.bank.tensors)
        except StorageError as error:
            self._unreachable(error)

    def _unreachable(self, error: StorageError) -> None:
        self.incomplete = True
        self.skipped.append(f"the tensors, and what only they prove: {error}")

    def jobs(self) -> None:
        with self._session() as session:
            before = self.now - timedelta(seconds=STUCK_SECONDS)
            self.checked["jobs"] += session.scalar(select(func.count()).select_from(JobRow)) or 0
            self.findings += audit.stuck_jobs(session, before=before, now=self.now, repair=self.repair)
            self.findings += audit.jobs_without_memory(session, now=self.now, repair=self.repair)

    def rows(self) -> None:
        with self._session() as session:
            for table in (KeyRow, UseRow, OutboxRow, EpisodeRow):
                self.checked["rows"] += session.scalar(select(func.count()).select_from(table)) or 0
            self.findings += audit.rows_without_memory(session, repair=self.repair)

    def purged(self) -> None:
        with self._session() as session:
            self.findings += audit.notes_of_purged(session, repair=self.repair)
        before = self.now - timedelta(seconds=PURGE_SECONDS)
        for finding in list(audit_purges.unpurged(self.bank, self.checked, before=before)):
            # not ours to mend: a file that somebody else has made his own, a store that does not answer
            left = finding.kind is FindingKind.EXPORTED_COPY or self.incomplete
            self.findings.append(finding if left else self._mended(finding, self._purge, "the purge was finished"))

    def _purge(self, finding: Finding) -> None:
        audit_purges.finish(self.bank, finding, actor=ACTOR)

    def ledger(self) -> None:
        """Every chain, and the clock that its events were written by."""
        for namespace in self.moved:
            try:
                found = chain.verify(
                    self.bank.database,
                    namespace,
                    vault=self.bank.vault,
                    progress=lambda done, total: self.progress("events", done, total),
                )
            except VaultLocked as error:
                self.skipped.append(f"the chain of namespace {namespace!r}: {error}")
                continue
            except StorageError as error:  # a note or a row that cannot be read
                self.findings.append(Finding(FindingKind.BROKEN_CHAIN, namespace, namespace, str(error)))
                continue
            self.checked["events"] += found.events
            if found.broken is not None:
                subject, problem = (
                    str(found.broken.revision),
                    f"event {found.broken.revision}: {found.broken.problem}",
                )
                self.findings.append(Finding(FindingKind.BROKEN_CHAIN, subject, namespace, problem))
        with self.bank.database.read() as session:
            self.findings += audit.erased_notes(session)
            self.findings += audit.future_events(session, after=self.now + timedelta(seconds=CLOCK_SECONDS))

    def memories(self) -> None:
        """Every memory: is it what the ledger says, is its tensor there, and is that what the record says?"""
        tensors = None if self.incomplete else self.bank.tensors
        memories = MemoryAudit(self.bank.database, tensors, self.bank.vault)
        with self.bank.database.read() as session:
            total = session.scalar(select(func.count()).select_from(MemoryRow)) or 0
        found: list[Finding] = []
        for page in memories.run():
            found += page
            self.progress("memories", memories.checked["memories"], total)
        self.checked += memories.checked
        if memories.locked:
            self.skipped.append(f"{memories.locked} memories are sealed: give the bank its key to check them")
        missing = sum(finding.kind is FindingKind.MISSING_TENSOR for finding in found)
        if missing == memories.checked["memories"] > 1:  # a folder that is not mounted must not cost the whole bank
            self.findings += [
                replace(finding, problem=f"{finding.problem} (as all others are: is the right folder mounted?)")
                for finding in found
            ]
            return
        for finding in found:
            advice = f"quarantined; when it is whole again, `elm-agent memories restore {finding.subject}`"
            if finding.kind is FindingKind.WRONG_VALIDITY:
                finding = self._mended(finding, lambda found: self._put_back(memories, found), "as the ledger has it")
            elif finding.kind not in _UNTOUCHED:
                finding = self._mended(finding, self._quarantine, advice)
            self.findings.append(finding)

    def _quarantine(self, finding: Finding) -> None:
        assert finding.namespace is not None
        self.bank.transition(
            finding.namespace, finding.subject, MemoryState.QUARANTINED, actor=ACTOR, reason=finding.problem
        )

    def _put_back(self, memories: MemoryAudit, finding: Finding) -> None:
        """The horizon that the ledger has, unless it was set anew meanwhile."""
        assert finding.namespace is not None
        if memories.again(finding.namespace, finding.subject) == finding:
            until = memories.horizons[finding.namespace, finding.subject]
            self.bank.set_validity(finding.namespace, finding.subject, until, actor=ACTOR)

    def contents(self) -> None:
        for namespace in self.moved:
            try:
                self.findings += audit_contents.unreadable(
                    self.bank.database, self.bank.vault, namespace, self.checked
                )
            except VaultLocked as error:
                self.skipped.append(f"the texts of namespace {namespace!r}: {error}")

    # --- the tensor store -------------------------------------------------------------------------------

    def tensors(self) -> None:
        """Tensors that no memory names, and files that a killed writer left."""
        stored: set[tuple[str, str]] = set()
        if not self.incomplete:
            try:  # listed before the rows are read: what is published meanwhile has a row
                stored = audit_tensors.stored(self.bank.tensors)
            except StorageError as error:
                self._unreachable(error)
        with self.bank.database.read() as session:
            found = session.execute(select(MemoryRow.namespace, MemoryRow.tensor_digest).distinct())
            named = {(namespace, digest) for namespace, digest in found}
        self.checked["tensors"] += len(stored)
        if not self.incomplete:
            try:
                self.findings += audit_tensors.rubbish(
                    self.bank.tensors, stored - named, self.checked, grace=self.grace, repair=self.repair
                )
                if (kept := self.bank.tensors.keeps_deleted()) is not None:
                    self.notes.append(kept)
            except StorageError as error:
                self._unreachable(error)
        self.findings += audit_files.surplus_copies(self.bank, named, self.checked, repair=self.repair)
        self.findings += audit_files.damaged_snapshots(self.bank, self.checked, repair=self.repair)

    # --- the durable index ------------------------------------------------------------------------------

    def index(self) -> None:
        index = self.bank.durable
        if not self.bank.uses_durable() or not self.moved:
            return
        if index is None:
            self.skipped.append("the durable index is not open here: examine it in the process that owns it")
            return
        try:
            if self.repair:
                self.bank.feed()
            wrong = [
                finding
                for name in self.moved
                for finding in audit_index.wrong_entries(self.bank, index, name, self.checked)
            ]
            if wrong and self.repair:
                wrong = audit_index.mend_entries(self.bank, index, wrong, actor=ACTOR)
            self.findings += wrong
        except IndexUnavailable as error:
            self.skipped.append(f"the {index.name} index: {error}")

    def unfed(self) -> None:
        """Indexes that were fed once, and that upkeep no longer keeps work for."""
        with self.bank.database.read() as session:
            for name in self.moved:
                for index, revision in upkeep.stale_indexes(session, name, now=self.now).items():
                    self.notes.append(
                        f"the {index} index of namespace {name!r} was last fed at revision {revision}, and lacks a "
                        f"change older than {upkeep.STALE.days} days: its work is pruned, and it is filled anew when "
                        "it is fed again. It may hold keys that were purged since"
                    )

    # --- repairs ----------------------------------------------------------------------------------------

    def _mended(self, finding: Finding, mend: Callable[[Finding], None], action: str) -> Finding:
        """The finding, with ``action`` if ``mend`` could do it."""
        if not self.repair or (finding.namespace is not None and self.moved.get(finding.namespace)):
            return finding
        try:
            mend(finding)
        except (NotFound, BankMoved):  # purged or moved meanwhile: there is nothing to mend here any more
            return finding
        return replace(finding, action=action)

    def _session(self) -> AbstractContextManager[Session]:
        open_session: Callable[[], AbstractContextManager[Session]]
        open_session = self.bank.database.write if self.repair else self.bank.database.read
        return open_session()
