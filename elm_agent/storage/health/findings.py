"""What can be wrong with a bank, and how it is said. Words only: nothing here looks or mends."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FindingKind(StrEnum):
    """What can be wrong with a bank."""

    DAMAGED_DATABASE = "damaged_database"  # pages, indexes or foreign keys are not in order
    OTHER_SCHEMA = "other_schema"  # a table or column that the newest migration makes is not there
    DAMAGED_ROW = "damaged_row"  # a row that cannot be read
    DANGLING_ROW = "dangling_row"  # a row whose other half is gone
    STUCK_JOB = "stuck_job"  # running, its lease long over
    BROKEN_CHAIN = "broken_chain"  # the ledger was edited, or lost events
    FUTURE_EVENT = "future_event"  # written when a clock was ahead, or is
    WRONG_STATE = "wrong_state"  # a memory in another state than the ledger says
    WRONG_VALIDITY = "wrong_validity"  # valid until another time than the ledger says
    ALTERED_RECORD = "altered_record"  # question, key, prompt or rollouts are not what the ledger bears witness to
    ORPHAN_TENSOR = "orphan_tensor"  # no memory names it, and none is about to
    TEMPORARY_FILE = "temporary_file"  # left by a writer that was killed
    MISSING_TENSOR = "missing_tensor"
    ALTERED_TENSOR = "altered_tensor"  # other bytes, shape or dtype than the record says
    UNREADABLE_TENSOR = "unreadable_tensor"  # the disk refuses; says nothing about the memory
    UNFINISHED_PURGE = "unfinished_purge"  # the rows are gone, files and index entries may not be
    UNPURGED = "unpurged"  # content of a memory that was purged
    EXPORTED_COPY = "exported_copy"  # a pack on this machine that holds a purged memory
    MISSING_ENTRY = "missing_entry"  # an active memory that the index does not have
    SURPLUS_ENTRY = "surplus_entry"  # an indexed id that is no active memory
    DAMAGED_SNAPSHOT = "damaged_snapshot"  # a file of keys that is not what was written
    SURPLUS_COPY = "surplus_copy"  # a cached tensor that no memory names any more
    LOST_KEY = "lost_key"  # sealed content whose key is gone or does not open it


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. ``action``: what was done about it; None when nothing was."""

    kind: FindingKind
    subject: str  # id, digest or file name
    namespace: str | None
    problem: str
    action: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at and what was wrong.

    ``skipped``: what could not be looked at, and why. ``incomplete``: among it is what a bank cannot be without.
    ``notes``: what is in order, and worth knowing.
    """

    findings: tuple[Finding, ...]
    checked: dict[str, int]
    skipped: tuple[str, ...] = ()
    incomplete: bool = False
    notes: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Nothing was wrong."""
        return not self.findings

    @property
    def left(self) -> tuple[Finding, ...]:
        """What was wrong and still is."""
        return tuple(finding for finding in self.findings if finding.action is None)
