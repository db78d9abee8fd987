"""The arithmetic of the ledger: each event's digest covers the one before it, so nothing can be changed unseen.

One chain per namespace. An event is hashed as canonical JSON (sorted keys, no spaces, UTF-8) with the digest of the
previous event; the first one follows ``genesis``. Free text is bound by a salted digest and can be erased, which
leaves the chain whole. What a chain cannot show is that its end was cut off together with the namespace's head, or
that all of it was written anew: signed checkpoints show that (see ``checkpoints``).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, select

from elm_agent.errors import StorageError, StoreBusy, VaultLocked
from elm_agent.records import digest_of
from elm_agent.storage.indexes.feed import revision_of
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import EventRow, NamespaceRow, storable
from elm_agent.storage.vault.base import PlainVault, Vault

ALGORITHM = "sha256"
_PAGE = 1000

Progress = Callable[[int, int], None]
"""``progress(events_done, events_in_all)``."""


@dataclass(frozen=True, slots=True)
class ChainBreak:
    """The first place at which a chain does not hold."""

    namespace: str
    revision: int
    problem: str


@dataclass(frozen=True, slots=True)
class ChainReport:
    """How many events were checked, where the chain ends, and the first break if there is one.

    ``closed_notes``: free texts that are sealed and were not compared, because no key was given.
    """

    namespace: str
    events: int
    head: str
    broken: ChainBreak | None
    closed_notes: int = 0


def genesis(namespace: str) -> str:
    """What the first event of a namespace follows."""
    return digest_of({"algorithm": ALGORITHM, "genesis": namespace})


def link(
    previous: str,
    *,
    namespace: str,
    revision: int,
    kind: str,
    memory_id: str | None,
    actor: str,
    detail: dict[str, Any],
    note_digest: str | None,
    created_at: datetime,
) -> str:
    """The digest of an event that follows ``previous``; "sha256:" and 64 hex digits."""
    return digest_of(
        {
            "algorithm": ALGORITHM,
            "previous": previous,
            "namespace": namespace,
            "revision": revision,
            "kind": kind,
            "memory_id": memory_id,
            "actor": storable(actor),
            "detail": detail,
            "note_digest": note_digest,
            "created_at": created_at.astimezone(UTC).isoformat(timespec="microseconds"),
        }
    )


def bind_note(note: str) -> tuple[str, str]:
    """(salt, digest) of a free text. Without the salt, which a purge erases, the text cannot even be guessed."""
    salt = secrets.token_hex(16)
    return salt, note_digest(salt, note)


def note_digest(salt: str, note: str) -> str:
    return "sha256:" + hashlib.sha256(f"{salt}\n{storable(note)}".encode()).hexdigest()


def verify(
    database: Database, namespace: str, *, vault: Vault | None = None, progress: Progress | None = None
) -> ChainReport:
    """Walk the chain of one namespace, as far as it went when this was called. Safe while the bank is in use.

    ``vault``: opens sealed notes. Raises ``NotFound`` for an unknown namespace.
    """
    opener = vault or PlainVault()
    at = select(NamespaceRow.revision, NamespaceRow.head).where(NamespaceRow.name == namespace)
    with database.read() as session:
        revision_of(session, namespace)
        count, head = session.execute(at).one()
    previous, done, closed = genesis(namespace), 0, 0
    for event in _events(database, namespace, count):
        try:
            problem = _problem(event, done + 1, previous) or _problem_of_note(event, opener)
        except VaultLocked:  # an auditor needs no key: the chain holds the digest of the note
            problem, closed = None, closed + 1
        if problem is not None:
            return _broken(namespace, done + 1, problem, done, previous)
        previous, done = event.digest, done + 1
        if progress and (done % _PAGE == 0 or done == count):
            progress(done, count)
    if done < count:
        problem = f"{count} events were written, this one and what follows it were removed"
        return _broken(namespace, done + 1, problem, done, previous)
    if previous != head:
        return _broken(namespace, done, "it is not the event that the namespace ended with", done, previous)
    if (inserted := _beyond(database, namespace)) is not None:
        return _broken(namespace, inserted, "it was inserted: the bank never wrote so many", done, previous)
    return ChainReport(namespace, done, previous, None, closed)


def _events(database: Database, namespace: str, upto: int) -> Iterator[EventRow]:
    """In pages of one short read each: a long one would make the writers of an SQLite bank wait."""
    after = 0
    of_namespace = select(EventRow).where(EventRow.namespace == namespace, EventRow.revision <= upto)
    while True:
        with database.read() as session:
            page = session.scalars(
                of_namespace.where(EventRow.revision > after).order_by(EventRow.revision).limit(_PAGE)
            ).all()
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1].revision


def _beyond(database: Database, namespace: str) -> int | None:
    """The first event above the namespace's own count; one statement, so what is being written is no such event."""
    written = select(NamespaceRow.revision).where(NamespaceRow.name == namespace).scalar_subquery()
    query = select(func.min(EventRow.revision)).where(EventRow.namespace == namespace, EventRow.revision > written)
    with database.read() as session:
        return session.scalar(query)


def _problem(event: EventRow, expected: int, previous: str) -> str | None:
    if event.revision != expected:
        return f"event {expected} is missing (the next one is {event.revision})"
    digest = link(
        previous,
        namespace=event.namespace,
        revision=event.revision,
        kind=event.kind,
        memory_id=event.memory_id,
        actor=event.actor,
        detail=event.detail,
        note_digest=event.note_digest,
        created_at=event.created_at,
    )
    if digest != event.digest:
        return "its content or its predecessor was altered"
    return None


def _problem_of_note(event: EventRow, vault: Vault) -> str | None:
    """Raises ``VaultLocked`` for a sealed note without its key."""
    if event.note is None and event.salt is None:
        return None  # never there, or erased by a purge
    if event.note is None or event.salt is None or event.note_digest is None:
        return "half of its note is missing"
    try:
        note = vault.open(event.namespace, event.note)
        salt = vault.open(event.namespace, event.salt)
    except (VaultLocked, StoreBusy):  # nothing is wrong with the note
        raise
    except StorageError as error:
        return f"its note was altered ({error})"
    return None if note_digest(salt, note) == event.note_digest else "its note was altered"


def _broken(namespace: str, revision: int, problem: str, events: int, head: str) -> ChainReport:
    return ChainReport(namespace, events, head, ChainBreak(namespace, revision, problem))
