"""A live bank moved to other back ends: every row, every tensor, checked at the end, and the old one refuses changes.

Copying goes in passes while agents and workers use the source. Then one transaction stops its writers, brings over
the last changes, compares everything, and says at the source where the bank is now. Until it is complete the target
says that the bank is at the source, so there is never more than one place that takes changes:

    while copying         source takes changes      target: moved to the source
    source committed      source: moved to target   target: moved to the source
    target activated      source: moved to target   target takes changes

Whoever was killed anywhere runs the same command again. Indexes are derived and are not copied; the target feeds its
own. Moving back works the same way: the old place already says that the bank is elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from elm_agent.errors import BankMoved, IndexUnavailable, InputError, ModelMismatch, StorageError, VaultLocked
from elm_agent.protocols import Observer
from elm_agent.records import EventKind
from elm_agent.storage.ledger import chain
from elm_agent.storage.ledger.changes import Change, lock_namespace
from elm_agent.storage.moving.rows import TABLES, Read, RowCopy, Tallies, counts, whole
from elm_agent.storage.moving.tensors import TensorCopy
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import NamespaceRow, TombstoneRow
from elm_agent.storage.vault.base import PlainVault, Vault
from elm_agent.storage.vault.encrypted import EncryptedVault
from elm_agent.storage.vault.keys import encrypted, load_ring

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank

MOVE_STEPS = (
    "move.batch",  # detail: what, done, total (rows or tensors looked at in this pass)
    "move.pass",  # detail: number, changed
    "move.locked",  # no writer at the source from here to the commit
    "move.verified",
    "move.before_commit",
    "move.committed",  # the source refuses changes
    "move.activated",  # the target takes them
)
"""Told to an observer; a crash is tested at each of them."""

_PASSES = 8
_FEW = 200  # changes that the last step may bring over while writers wait
_LOCK_MS = 80  # shorter than PostgreSQL's look for deadlocks, so that no writer ever pays for ours
_LOCK_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveReport:
    """``rows``: by table. ``missing``: (namespace, digest) of tensors that the source had lost before.

    ``held_seconds``: how long writers at the source had to wait at the end. ``digest``: over all rows, the same on
    both sides. ``index``: why the new index is not fed yet, if it is not.
    """

    source: str
    target: str
    namespaces: tuple[str, ...]
    moved: bool
    rows: dict[str, int]
    tensors: int
    missing: tuple[tuple[str, str], ...] = ()
    passes: int = 0
    held_seconds: float = 0.0
    digest: str = ""
    index: str | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """``names``: to be copied. ``unfinished``: the source has handed them over, the target is to be activated.
    ``done``: the target has them, and only its indexes may not be clean."""

    names: tuple[str, ...] = field(default=())
    unfinished: tuple[str, ...] = field(default=())
    done: tuple[str, ...] = field(default=())


def move(
    source: Bank,
    target: Bank,
    *,
    actor: str,
    keep: bool = False,
    dry_run: bool = False,
    observe: Observer | None = None,
) -> MoveReport:
    """Move every namespace of ``source`` into ``target``, another bank. What was moved before is passed over.

    ``keep``: copy only; both are banks of their own afterwards, and the copy's ledger says so. ``dry_run``: change
    nothing, only count.

    Raises:
        InputError: both are the same database, or the target has a namespace of that name with other content.
        ModelMismatch: ... and it was made for another model.
        BankMoved: a namespace went to a third place.
        StorageError: a chain is broken, a store refused, or the copy is not what was copied. The source goes on.
        VaultLocked: the bank is encrypted, and the target was opened without its master key.
    """
    tell: Observer = observe or (lambda _name, _detail: None)
    here, there = place(source.database), place(target.database)
    _check_apart(source.database, target.database)
    plan = _plan(source.database, target.database, here, there)
    _check_key(source.database, target.vault, plan.names)
    rows = counts(source.database.read, plan.names)
    if dry_run:
        tensors = TensorCopy(source.tensors, target.tensors, plan.names, lambda *_: None).count(source.database.read)
        return MoveReport(source=here, target=there, namespaces=plan.names, moved=False, rows=rows, tensors=tensors)
    index = _feed(target, plan.done)
    if plan.unfinished:
        index = _take_over(source, target, plan.unfinished, None, tell)
    if not plan.names:
        moved = bool(plan.unfinished)
        return MoveReport(
            source=here, target=there, namespaces=plan.unfinished, moved=moved, rows={}, tensors=0, index=index
        )
    return _Move(source, target, plan.names, here, there, tell).run(actor=actor, keep=keep, rows=rows)


def place(database: Database) -> str:
    """The database as others may name it: without a password, a file by its whole path."""
    file = database.engine.url.database
    return f"sqlite:///{Path(file).absolute()}" if database.sqlite and file else database.where


class _Move:
    """One run over namespaces that the source still has."""

    def __init__(
        self, source: Bank, target: Bank, names: Sequence[str], here: str, there: str, tell: Observer
    ) -> None:
        self._source, self._target = source, target
        self._names, self._here, self._there, self._tell = tuple(names), here, there, tell
        self._done = self._total = 0
        self._rows = RowCopy(target.database, names, mark=here, paged=self._paged)
        self._tensors = TensorCopy(source.tensors, target.tensors, names, self._paged)

    def run(self, *, actor: str, keep: bool, rows: dict[str, int]) -> MoveReport:
        source, target = self._source, self._target
        self._walk_chains(source.database)  # a broken bank stays where it is, and is named
        passes, changed = 0, _FEW + 1
        while changed > _FEW and passes < _PASSES:
            passes += 1
            changed = self._pass(source.database.read, rows, strict=False)[0]
            self._tell("move.pass", {"number": passes, "changed": changed})
        with source.database.write() as session:
            _hold(source.database, session)
            began = time.monotonic()
            self._tell("move.locked", {})
            if not keep:
                self._hand_over(session, actor)
            tallies = self._finish(session, rows)
            self._tell("move.before_commit", {"rows": whole(tallies).rows})
        held = time.monotonic() - began
        self._tell("move.committed", {"held_seconds": held})
        index = _take_over(source, target, self._names, actor if keep else None, self._tell)
        return MoveReport(
            source=self._here,
            target=self._there,
            namespaces=self._names,
            moved=not keep,
            rows={table.name: sum(t.rows for (of, _), t in tallies.items() if of == table.name) for table in TABLES},
            tensors=len(self._tensors.whole),
            missing=tuple(sorted(self._tensors.missing)),
            passes=passes,
            held_seconds=held,
            digest=str(whole(tallies)),
            index=index,
        )

    def _pass(self, read: Read, rows: dict[str, int], *, strict: bool) -> tuple[int, Tallies]:
        self._done, self._total = 0, sum(rows.values()) + rows["memories"]
        changed, tallies = self._rows.once(read, strict=strict)
        return changed + self._tensors.once(read), tallies

    def _hand_over(self, session: Session, actor: str) -> None:
        detail = {"from": _kind(self._source.database), "to": _kind(self._target.database)}
        now = self._source.database.now(session)
        for name in self._names:
            row = lock_namespace(session, name)
            Change(session, row, actor, now, self._source.vault).append(EventKind.MOVED, None, detail)
            row.moved_to = self._there
        session.flush()

    def _finish(self, session: Session, rows: dict[str, int]) -> Tallies:
        """The last changes, and the comparison of everything; nobody changes the source meanwhile."""

        @contextmanager
        def read() -> Iterator[Session]:
            yield session

        _, tallies = self._pass(read, rows, strict=True)
        self._walk_chains(self._target.database)
        self._tell("move.verified", {"rows": whole(tallies).rows, "tensors": len(self._tensors.whole)})
        return tallies

    def _walk_chains(self, database: Database) -> None:
        for name in self._names:
            report = chain.verify(database, name, vault=self._source.vault)
            if report.broken is not None:
                raise StorageError(
                    f"the ledger of namespace {name!r} is broken at event {report.broken.revision} in "
                    f"{place(database)} ({report.broken.problem}): nothing was moved; see `elm-agent audit verify`"
                )

    def _paged(self, what: str, count: int) -> None:
        self._done += count
        self._tell("move.batch", {"what": what, "done": self._done, "total": max(self._total, self._done)})


def _plan(source: Database, target: Database, here: str, there: str) -> _Plan:
    with source.read() as session:
        found = session.scalars(select(NamespaceRow).order_by(NamespaceRow.name)).all()
    with target.read() as session:
        others = {row.name: row for row in session.scalars(select(NamespaceRow))}
    if not found:
        raise InputError(f"there is nothing to move: {here} has no namespace")
    names: list[str] = []
    unfinished: list[str] = []
    done: list[str] = []
    for row in found:
        other = others.get(row.name)
        handed_over = other is not None and row.moved_to == there
        if row.moved_to is not None and not handed_over:
            raise BankMoved(f"namespace {row.name!r} was moved to {row.moved_to}: move it from there")
        if other is not None and other.model_id != row.model_id:
            raise ModelMismatch(
                f"namespace {row.name!r} is in the target already, for model {other.model_name!r}; here it is made "
                f"for {row.model_name!r}: move to another target"
            )
        if handed_over:
            (unfinished if other is not None and other.moved_to == here else done).append(row.name)
        elif other is None or other.moved_to == here:
            names.append(row.name)
        else:
            raise InputError(
                f"namespace {row.name!r} is in the target {there} already, with content of its own: move to an "
                "empty target"
            )
    return _Plan(tuple(names), tuple(unfinished), tuple(done))


def _take_over(
    source: Bank, target: Bank, names: Collection[str], copied_by: str | None, tell: Observer
) -> str | None:
    """What follows the commit, and is done by the next run if this one is killed; see ``MoveReport.index``.

    What was purged while it was copied, or since the bank left this target, leaves no trace in it: its tensors and
    the journal are cleaned before the target takes changes, its indexes after, for they may be out of reach.
    """
    TensorCopy(source.tensors, target.tensors, names, lambda *_: None).drop_purged(target.database)
    target.database.scrub()
    _activate(target, names, copied_by, tell)
    return _feed(target, names)


def _feed(target: Bank, names: Collection[str]) -> str | None:
    with target.database.read() as session:
        purged = set(session.scalars(select(TombstoneRow.namespace).distinct()))
    try:
        for name in sorted(purged & set(names)):
            target.scrub_indexes(name)
        if names and target.durable is not None and target.uses_durable():
            target.feed()
    except IndexUnavailable as error:
        return str(error)
    return None


def _activate(target: Bank, names: Collection[str], copied_by: str | None, tell: Observer) -> None:
    """The target takes changes from here on. ``copied_by``: the actor, where the source goes on as well."""
    with target.database.write() as session:
        now = target.database.now(session)
        for row in session.scalars(select(NamespaceRow).where(NamespaceRow.moved_to.is_not(None)).with_for_update()):
            if row.name in names:
                row.moved_to = None
                if copied_by is not None:
                    detail = {"copy_of": row.head}
                    Change(session, row, copied_by, now, target.vault).append(EventKind.MOVED, None, detail)
    tell("move.activated", {"namespaces": len(names)})


def _hold(database: Database, session: Session) -> None:
    """Let no writer in until the transaction ends; readers go on. Raises ``StoreBusy`` when they never pause."""
    if database.sqlite:
        return  # the transaction began with BEGIN IMMEDIATE
    rows = select(NamespaceRow.name).order_by(NamespaceRow.name).with_for_update(key_share=True)
    tables = text(f"LOCK TABLE {', '.join(table.name for table in TABLES)} IN SHARE ROW EXCLUSIVE MODE")
    session.execute(text(f"SET LOCAL lock_timeout = {_LOCK_MS}"))
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            with session.begin_nested():  # rows first: a writer that has its namespace's row ends by itself
                session.execute(rows)
                session.execute(tables)
            return
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != "55P03" or time.monotonic() > until:
                raise
        time.sleep(_LOCK_MS / 1000)


def _check_key(source: Database, vault: Vault, names: Collection[str]) -> None:
    """The keys of namespaces are copied as they are wrapped, so the target's master key has to open them."""
    if encrypted(source) and isinstance(vault, PlainVault):
        raise VaultLocked("the bank is encrypted, and the target has no key: name the same key in its profile")
    if isinstance(vault, EncryptedVault):
        for name in names:
            load_ring(source, name, vault.masters)


def _check_apart(source: Database, target: Database) -> None:
    if _identity(source) == _identity(target):
        raise InputError(f"source and target are the same database, {place(source)}: name two profiles that differ")


def _identity(database: Database) -> tuple[Any, ...]:
    if database.sqlite:
        return ("sqlite", Path(database.engine.url.database or "").resolve())
    with database.read() as session:
        query = text("SELECT system_identifier, current_database() FROM pg_control_system()")
        return ("postgresql", *session.execute(query).one())


def _kind(database: Database) -> str:
    return database.engine.dialect.name
