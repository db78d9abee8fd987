"""Removing for good: rows, keys, tensors, caches, index files and journals; a tombstone is all that stays.

The order makes a crash harmless. One transaction deletes every row and writes the tombstone with the digest of the
tensor as ``pending``; from its commit on nothing can be found or read. Then files, caches, indexes and the journal
are cleaned, in no transaction, and ``pending`` is cleared last: whoever comes next (a purge, ``doctor``) finishes
what is pending. ``keeping`` says why a tensor stays that is stored again meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Delete, delete, func, select, update
from sqlalchemy.orm import Session

from elm_agent.errors import IndexUnavailable, InputError
from elm_agent.protocols import Observer
from elm_agent.records import EventKind, MemoryState
from elm_agent.storage.keeping import delete_purged, unfinished
from elm_agent.storage.ledger.changes import Change, changing, check_still_here, find_memory
from elm_agent.storage.sql.paging import some
from elm_agent.storage.sql.schema import (
    EpisodeRow,
    EventRow,
    ExportRow,
    JobRow,
    KeyRow,
    MemoryRow,
    OutboxRow,
    TombstoneRow,
    UseRow,
)

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank

_BATCH = 100  # memories of one transaction


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """What was removed, and what may still hold it.

    ``exports``: (memory id, pack id, path) of files that left the bank. ``left``: a sentence for the bucket or
    each index that may keep what was deleted.
    """

    namespace: str
    memory_ids: tuple[str, ...]
    uses: int
    jobs: int
    exports: tuple[tuple[str, str, str], ...]
    left: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What came from one subject in one namespace, and is gone (or would be, in a dry run). See ``PurgeReport``."""

    namespace: str
    memory_ids: tuple[str, ...]
    jobs: int
    uses: int
    exports: tuple[tuple[str, str, str], ...]
    left: tuple[str, ...] = ()


def purge(
    bank: Bank,
    namespace: str,
    memory_ids: Sequence[str],
    *,
    actor: str,
    reason: str | None,
    tell: Observer,
    even_pinned: bool = False,
    only: MemoryState | None = None,
) -> PurgeReport:
    """See ``Bank.purge``. ``only``: pass over what is in another state, pinned or gone when its turn comes.

    ``tell`` hears "purge.before_commit", "purge.committed", "purge.files", "purge.done"."""
    ids = tuple(dict.fromkeys(memory_ids))
    uses = jobs = 0
    done: list[str] = []
    if only is None:
        for some_ids in some(ids):
            _check_all(bank, namespace, some_ids, even_pinned)
    exports = _exports(bank, namespace, ids)
    for batch in some(ids, _BATCH):
        with changing(bank.database, namespace, actor=actor, vault=bank.vault) as change:
            for memory_id in batch:
                if only is not None and not _is(change, memory_id, only):
                    continue
                done.append(memory_id)
                gone_uses, gone_jobs = _remove(change, memory_id, reason)
                uses, jobs = uses + gone_uses, jobs + gone_jobs
            change.session.flush()
            tell("purge.before_commit", {"namespace": namespace, "memories": len(batch)})
        tell("purge.committed", {"namespace": namespace, "memories": len(batch)})
    _, left = finish(bank, namespace, tell)
    gone = set(done)
    copies = tuple(export for export in exports if export[0] in gone)
    return PurgeReport(namespace, tuple(done), uses, jobs, copies, left)


def finish(bank: Bank, namespace: str, tell: Observer) -> tuple[int, tuple[str, ...]]:
    """Clean files, caches, indexes and the journal of all that is purged and still pending.

    Returns how many memories it was, and what is left: see ``PurgeReport``. What an index keeps that cannot be
    reached from here stays pending.
    """
    with bank.database.read() as session:
        if found := unfinished(session, namespace):
            check_still_here(session, namespace)
    if not found:
        return 0, ()
    delete_purged(bank.database, bank.tensors, namespace, found)
    kept = bank.tensors.keeps_deleted()
    bank.drop_caches(namespace, {memory_id for memory_id, _ in found})
    tell("purge.files", {"namespace": namespace, "memories": len(found)})
    try:
        unsure = bank.scrub_indexes(namespace)
    except IndexUnavailable as error:
        bank.database.scrub()
        return len(found), tuple(sentence for sentence in (kept, str(error)) if sentence is not None)
    cleared = update(TombstoneRow).where(TombstoneRow.namespace == namespace)
    with bank.database.write() as session:
        for ids in some(memory_id for memory_id, _ in found):
            session.execute(cleared.where(TombstoneRow.memory_id.in_(ids)).values(pending=None))
        check_still_here(session, namespace)
    bank.database.scrub()
    tell("purge.done", {"namespace": namespace, "memories": len(found)})
    left = [] if kept is None else [kept]
    left += [f"the index {name} may keep deleted keys on its disk: see its manual" for name in unsure]
    return len(found), tuple(left)


def forget(
    bank: Bank, subject: str, *, namespace: str | None, actor: str, dry_run: bool, tell: Observer
) -> list[Forgotten]:
    """See ``Bank.forget_subject``."""
    names = [namespace] if namespace is not None else [info.name for info in bank.namespaces()]
    if not dry_run:  # before anything is deleted anywhere
        with bank.database.read() as session:
            for name in names:
                check_still_here(session, name)
    done = [_forget_in(bank, name, subject, actor, dry_run, tell) for name in names]
    if not dry_run:  # also when nothing was found: a pass that was broken off may have deleted jobs and no more
        bank.database.scrub()
    return [entry for entry in done if entry.memory_ids or entry.jobs or entry.uses or entry.left]


def _forget_in(bank: Bank, namespace: str, subject: str, actor: str, dry_run: bool, tell: Observer) -> Forgotten:
    # what was stored before encryption was switched on bears the plain name
    names = {subject, bank.vault.blind(namespace, subject)}
    if not dry_run:
        # jobs first: a worker that is at one finds it gone, and what it made is discarded
        with bank.database.write() as session:
            jobs = _count(session, delete(JobRow).where(JobRow.namespace == namespace, JobRow.subject.in_(names)))
            check_still_here(session, namespace)
    with bank.database.read() as session:
        if dry_run:
            mine = select(func.count()).where(JobRow.namespace == namespace, JobRow.subject.in_(names))
            jobs = session.scalar(mine) or 0
        of_subject = select(MemoryRow.id).where(MemoryRow.namespace == namespace, MemoryRow.subject.in_(names))
        ids = tuple(session.scalars(of_subject.order_by(MemoryRow.id)))
        asked = select(func.count()).where(UseRow.namespace == namespace, UseRow.subject.in_(names))
        uses = session.scalar(asked) or 0
    exports = _exports(bank, namespace, ids)
    if dry_run:
        return Forgotten(namespace, ids, jobs, uses, exports)
    if ids:
        left = purge(bank, namespace, ids, actor=actor, reason=None, tell=tell, even_pinned=True).left
    else:  # the rows may have gone in a pass that was broken off before the files were clean
        left = finish(bank, namespace, tell)[1]
    if not (ids or jobs or uses):
        return Forgotten(namespace, ids, jobs, uses, exports, left)
    with changing(bank.database, namespace, actor=actor, vault=bank.vault) as change:
        change.session.execute(delete(UseRow).where(UseRow.namespace == namespace, UseRow.subject.in_(names)))
        change.note(EventKind.ERASED, None, {"memories": len(ids), "jobs": jobs, "uses": uses})
    return Forgotten(namespace, ids, jobs, uses, exports, left)


def _is(change: Change, memory_id: str, state: MemoryState) -> bool:
    memory = change.session.get(MemoryRow, (change.namespace.name, memory_id))
    return memory is not None and memory.state == state and not memory.pinned


def _remove(change: Change, memory_id: str, reason: str | None) -> tuple[int, int]:
    """Delete every row of one memory; (uses, jobs) that went with it."""
    session, namespace = change.session, change.namespace.name
    memory = find_memory(session, namespace, memory_id, lock=True)
    detail = {"state": memory.state, "tensor_digest": memory.tensor_digest}
    change.append(EventKind.PURGED, memory_id, detail, text=reason)
    session.flush()
    # older work for the indexes goes first: without a range of revisions the index over memories finds it
    session.execute(delete(OutboxRow).where(OutboxRow.namespace == namespace, OutboxRow.memory_id == memory_id))
    change.tell_indexes(memory_id, present=False)
    session.merge(  # the doctor purges again what came back
        TombstoneRow(
            namespace=namespace,
            memory_id=memory_id,
            revision=change.namespace.revision,
            actor=change.actor,
            purged_at=change.now,
            pending=memory.tensor_digest,
        )
    )
    session.flush()
    older = EventRow.revision < change.namespace.revision
    mine = EventRow.namespace == namespace, EventRow.memory_id == memory_id, older
    session.execute(update(EventRow).where(*mine).values(note=None, salt=None))
    used = UseRow.memory_namespace == namespace, UseRow.memory_id == memory_id
    uses = _count(session, delete(UseRow).where(*used))
    jobs = _count(session, delete(JobRow).where(JobRow.namespace == namespace, JobRow.memory_id == memory_id))
    session.execute(delete(KeyRow).where(KeyRow.namespace == namespace, KeyRow.memory_id == memory_id))
    episode_id = memory.episode_id
    session.delete(memory)
    session.flush()
    session.execute(delete(EpisodeRow).where(EpisodeRow.namespace == namespace, EpisodeRow.id == episode_id))
    return uses, jobs


def _count(session: Session, statement: Delete) -> int:
    return int(session.execute(statement).rowcount)  # type: ignore[attr-defined]


def _check_all(bank: Bank, namespace: str, ids: Sequence[str], even_pinned: bool) -> None:
    query = select(MemoryRow.id, MemoryRow.pinned).where(MemoryRow.namespace == namespace, MemoryRow.id.in_(ids))
    with bank.database.read() as session:
        pinned = dict(session.execute(query).tuples().all())
        for memory_id in ids:
            if memory_id not in pinned:
                find_memory(session, namespace, memory_id)  # says why it is not there
            elif pinned[memory_id] and not even_pinned:
                raise InputError(f"memory {memory_id} is pinned: unpin it before it is purged")


def _exports(bank: Bank, namespace: str, ids: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    found: list[tuple[str, str, str]] = []
    for some_ids in some(ids):
        query = select(ExportRow).where(ExportRow.namespace == namespace, ExportRow.memory_id.in_(some_ids))
        with bank.database.read() as session:
            found += [(row.memory_id, row.pack_id, row.path) for row in session.scalars(query)]
    return tuple(sorted(found))
