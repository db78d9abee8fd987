"""Changing keys while agents and workers go on: a new master key wraps anew, a new data key seals all content anew.

Every step may be the last one. A batch is one transaction; a tensor is stored under its new digest before the
transaction that names it, and the old one is deleted after the commit. What a killed rotation leaves is a tensor that
no row names and rows under the old key, which stays until nothing needs it; the next rotation collects the one and
goes on with the others. A process that still knows only the old key may go on sealing with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from elm_agent.errors import InputError, StorageError, TensorMissing, VaultLocked
from elm_agent.protocols import Observer
from elm_agent.records import EventKind
from elm_agent.storage.bank import Bank
from elm_agent.storage.keeping import UNNAMED_SECONDS, is_named
from elm_agent.storage.ledger.changes import changing
from elm_agent.storage.sql.schema import JobRow, MemoryRow, VaultKeyRow
from elm_agent.storage.vault import sealed_columns
from elm_agent.storage.vault.base import LockedVault
from elm_agent.storage.vault.crypto import version_of
from elm_agent.storage.vault.encrypted import EncryptedVault
from elm_agent.storage.vault.keys import DATA, SEALED, key_rows, mark_sealed, new_row, rewrap
from elm_agent.storage.vault.master_keys import MasterKeys
from elm_agent.storage.vault.sealed_columns import JOBS, MEMORIES, TABLES, SealedTable

ACTOR = "key rotation"
_BATCH = 50  # rows of one transaction
_PASSES = 5  # over a table that others write to meanwhile
_LONGEST_WRITE = timedelta(days=1)  # between the sealing of a tensor and the commit of its row

Progress = Callable[[int, int], None]
"""``progress(rows_done, rows_in_all)``."""


@dataclass(frozen=True, slots=True)
class Rewrapped:
    """The keys of one namespace have a new master key. ``before``: ids of those they had; empty: nothing to do."""

    namespace: str
    before: tuple[str, ...]
    master_id: str


@dataclass(frozen=True, slots=True)
class Resealed:
    """The content of one namespace is sealed under key ``version``.

    ``left``: what could not be opened, as it is named and why; ``retired``: versions that nothing needs any more.
    ``finished``: nothing is left under another version.
    """

    namespace: str
    version: int
    rows: int
    tensors: int
    left: tuple[tuple[str, str], ...]
    retired: tuple[int, ...]
    finished: bool


def rotate_master(bank: Bank, *, to: MasterKeys | None = None, progress: Progress | None = None) -> list[Rewrapped]:
    """Wrap the keys of every namespace by another master key: the current one of ``to``, or of the bank's own source.

    Content is not touched. One transaction for each namespace; those that are done already are passed over.

    Raises:
        InputError: the bank is not encrypted. VaultLocked: a key was wrapped by a master key that is not given.
    """
    vault = _vault(bank)
    new, done = (to or vault.masters).current(), []
    names = [info.name for info in bank.namespaces()]
    for index, name in enumerate(names):
        with changing(bank.database, name, actor=ACTOR, vault=vault) as change:
            before = rewrap(key_rows(change.session, name), vault.masters, new)
            if before:
                change.note(EventKind.KEY_ROTATED, detail={"key": "master", "from": before, "to": new.id})
        done.append(Rewrapped(name, tuple(before), new.id))
        if progress:
            progress(index + 1, len(names))
    return done


def rotate_data(
    bank: Bank, namespace: str, *, observe: Observer | None = None, progress: Progress | None = None
) -> Resealed:
    """Seal all content of a namespace under a new key; or finish what is unfinished, without another new key.

    Unfinished is also a namespace that has readable content, for example because encryption was just switched on.
    ``observe`` is told "rotate.tensor_durable", "rotate.before_commit", "rotate.committed" and "rotate.deleted".

    Raises:
        InputError: the bank is not encrypted. NotFound: no such namespace. StorageError: a store refused.
    """
    return _Rotation(bank, namespace, observe or _silent, progress).run()


class _Rotation:
    def __init__(self, bank: Bank, namespace: str, tell: Observer, progress: Progress | None) -> None:
        self.bank, self.namespace, self.tell, self.progress = bank, namespace, tell, progress
        self.vault = _vault(bank)
        self.left: dict[str, str] = {}
        self.rows = self.tensors = 0

    def run(self) -> Resealed:
        self.vault.ensure(self.namespace)
        self.version, self.began = self._begin()
        self.vault.ring(self.namespace)  # from here on this process seals with the new key
        self._collect()
        self.total = self._count()
        for _ in range(_PASSES):
            before = self.rows
            for table in TABLES:
                self._table(table)
            if self.rows == before:
                break
        retired, finished = self._end()
        self.vault.ring(self.namespace)
        self.bank.database.scrub()
        left = tuple(sorted(self.left.items()))
        return Resealed(self.namespace, self.version, self.rows, self.tensors, left, retired, finished)

    def _collect(self) -> None:
        """Delete what a rotation left that was killed between a commit and its deletions.

        As the doctor does: what was stored within the last hour may be about to be named.
        """
        stored = set(self.bank.tensors.digests(self.namespace))  # before the rows, which name what comes meanwhile
        named = select(MemoryRow.tensor_digest).where(MemoryRow.namespace == self.namespace)
        with self.bank.database.read() as session:
            left = stored - set(session.scalars(named))
        for digest in sorted(left):
            self._delete(digest, older_than_seconds=UNNAMED_SECONDS)

    def _begin(self) -> tuple[int, datetime]:
        """The version to seal with, and since when it is there."""
        with changing(self.bank.database, self.namespace, actor=ACTOR, vault=self.vault) as change:
            found = key_rows(change.session, self.namespace)
            live = [row for row in found if row.purpose == DATA and row.retired_at is None]
            if len(live) == 1 and any(row.purpose == SEALED for row in found):
                newest = max(row.version for row in found if row.purpose == DATA)
                live.append(new_row(self.namespace, DATA, newest + 1, self.vault.masters.current(), change.now))
                change.session.add(live[-1])
            return live[-1].version, live[-1].created_at

    def _table(self, table: SealedTable) -> None:
        last: Any = None
        while found := self._batch(table, last):
            last = getattr(found[-1], table.key)
            done = self._memories(found) if table is MEMORIES else self._rows(table, found)
            self.rows += done
            if self.progress:
                self.progress(min(self.rows, self.total), self.total)

    def _batch(self, table: SealedTable, last: Any) -> Sequence[Any]:
        query = select(table.row).where(table.of(self.namespace), self._wanted(table)).order_by(table.order())
        if last is not None:
            query = query.where(table.order() > last)
        with self.bank.database.read() as session:
            return session.scalars(query.limit(_BATCH)).all()

    def _wanted(self, table: SealedTable) -> Any:
        stale = table.stale(self.version)
        if table is not MEMORIES:
            return stale
        # a tensor may have been sealed just before its row was, by a process that learned of the new key in between
        return or_(stale, MemoryRow.updated_at >= self.began - _LONGEST_WRITE)

    def _rows(self, table: SealedTable, found: Sequence[Any]) -> int:
        keys = [getattr(row, table.key) for row in found]
        with self.bank.database.write() as session:
            done = sum(self._reseal(session, table, row) for row in _locked(session, table, self.namespace, keys))
            session.flush()
            self.tell("rotate.before_commit", {"namespace": self.namespace, "rows": done})
        self.tell("rotate.committed", {"namespace": self.namespace, "rows": done})
        return done

    def _memories(self, found: Sequence[MemoryRow]) -> int:
        """Rows and tensors of memories."""
        fresh = {row.id: (row.tensor_digest, new) for row in found if (new := self._new_tensor(row)) is not None}
        done, old, unused = 0, [], {new for _, new in fresh.values()}
        with self.bank.database.write() as session:
            for row in _locked(session, MEMORIES, self.namespace, [row.id for row in found]):
                was, new = fresh.get(row.id, ("", ""))
                moved = new != "" and row.tensor_digest == was
                if moved:
                    row.tensor_digest = new
                    old.append(was)
                    unused.discard(new)
                done += self._reseal(session, MEMORIES, row) or moved
            session.flush()
            self.tell("rotate.before_commit", {"namespace": self.namespace, "rows": done})
        self.tell("rotate.committed", {"namespace": self.namespace, "rows": done})
        self.tensors += len(old)
        for digest in (*old, *unused):
            self._delete(digest)
        return done

    def _new_tensor(self, row: MemoryRow) -> str | None:
        """The digest of the memory's tensor under the new key; None when it has that key, or cannot be opened."""
        try:
            data = self.bank.tensors.get(self.namespace, row.tensor_digest)
            if version_of(data) == self.version:
                return None
            plain = self.vault.open_bytes(self.namespace, data)
        except VaultLocked:
            raise
        except TensorMissing:
            return None  # nothing is there that could be read
        except StorageError as error:
            self.left[f"tensor of {row.id}"] = str(error)
            return None
        digest = self.bank.tensors.put(self.namespace, self.vault.seal_bytes(self.namespace, plain))
        self.tell("rotate.tensor_durable", {"namespace": self.namespace, "memory_id": row.id})
        return digest

    def _delete(self, digest: str, older_than_seconds: float | None = None) -> None:
        """Readers that were about to open it look again at the memory, which names another one by now."""
        named = partial(is_named, self.bank.database, self.namespace, digest)
        if self.bank.tensors.delete(self.namespace, digest, older_than_seconds=older_than_seconds, unless=named):
            self.tell("rotate.deleted", {"namespace": self.namespace, "digest": digest})

    def _reseal(self, session: Session, table: SealedTable, row: Any) -> bool:
        name = f"{table.row.__tablename__} {getattr(row, table.key)}"
        if name in self.left:
            return False
        try:
            with session.no_autoflush:
                table.reseal(row, self.vault, self.version)
                if table is JOBS:
                    self._part(session, row)
        except VaultLocked:
            raise
        except StorageError as error:
            self.left[name] = str(error)
            return False
        return session.is_modified(row)

    def _part(self, session: Session, row: JobRow) -> None:
        """The name of a job that was queued again, blinded, before this one was blinded: the younger one keeps it."""
        same = JobRow.namespace == row.namespace, JobRow.idempotency_key == row.idempotency_key, JobRow.id != row.id
        if session.scalar(select(JobRow.id).where(*same)) is not None:
            row.idempotency_key = self.vault.blind(row.namespace, f"{row.idempotency_key} {row.id}")

    def _count(self) -> int:
        with self.bank.database.read() as session:
            counts = [
                session.scalar(
                    select(func.count()).select_from(table.row).where(table.of(self.namespace), self._wanted(table))
                )
                for table in TABLES
            ]
        return sum(n or 0 for n in counts)

    def _end(self) -> tuple[tuple[int, ...], bool]:
        """Retire the old keys if nothing needs them, and say so in the ledger."""
        with changing(self.bank.database, self.namespace, actor=ACTOR, vault=self.vault) as change:
            readable, outdated = sealed_columns.count(change.session, self.namespace, self.version)
            if readable or outdated or self.left:
                return (), False
            found = key_rows(change.session, self.namespace)
            old = [
                row for row in found if row.purpose == DATA and row.retired_at is None and row.version != self.version
            ]
            _retire(old, change.now)
            unmarked = not any(row.purpose == SEALED for row in found)
            if unmarked:
                change.session.add(mark_sealed(self.namespace, self.vault.masters.current(), change.now))
            retired = tuple(row.version for row in old)
            if retired or unmarked:
                detail = {"key": "data", "from": list(retired), "to": self.version}
                change.note(EventKind.KEY_ROTATED, detail=detail)
            return retired, True


def _retire(rows: Sequence[VaultKeyRow], now: datetime) -> None:
    """Nothing is sealed with them any more. They stay, for what a process wrote that has not yet heard of it."""
    for row in rows:
        row.retired_at = now


def _locked(session: Session, table: SealedTable, namespace: str, keys: Sequence[Any]) -> Sequence[Any]:
    """Those rows that nobody else is changing: waiting for one while holding others could lock two processes up."""
    query = select(table.row).where(table.of(namespace), table.order().in_(keys)).order_by(table.order())
    return session.scalars(query.with_for_update(skip_locked=True, key_share=True)).all()


def _vault(bank: Bank) -> EncryptedVault:
    if isinstance(bank.vault, EncryptedVault):
        return bank.vault
    if isinstance(bank.vault, LockedVault):
        bank.vault.ensure("all")
    raise InputError(
        "the bank is not encrypted: make a key with `elm-agent encryption new-key` and give it by the setting "
        "encryption.key_file or encryption.key_env"
    )


def _silent(step: str, detail: dict[str, Any]) -> None:
    """An observer that nobody listens to."""
