"""Pages of memories for people who look around: filtered, searched, sorted, each found again by where the last ended.

No page is counted from the beginning, so page 1,000 costs what page 1 does. Sorting by age, change and votes follows
an index; the other orders and a search read the namespace once, which 100,000 memories bear. Sealed questions cannot
be searched by the database: they are opened a piece at a time, and a search that has looked for long enough says how
far it came.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, func, literal, select, tuple_
from sqlalchemy.orm import Session

from elm_agent.errors import InputError
from elm_agent.records import MemoryState, UseOutcome
from elm_agent.storage.indexes.feed import revision_of
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import EventRow, MemoryRow, UseRow
from elm_agent.storage.uses import BROKEN, FIXED, USES
from elm_agent.storage.vault.base import PlainVault, Vault

SIZE = 50
_PIECE = 2000  # sealed questions that are opened between two looks at the clock
_SECONDS = 0.1
_DIGITS = 18
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Order(StrEnum):
    """How memories are sorted; the id decides between equals."""

    NEWEST = "newest"
    OLDEST = "oldest"
    CHANGED = "changed"  # last changed first
    BEST_VOTES = "best_votes"
    WORST_VOTES = "worst_votes"
    USED = "used"  # most uses first; here and below only memories that have any
    FIXED = "fixed"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which memories. ``text``: part of the question, upper and lower case alike; None: any."""

    state: MemoryState | None = None
    pinned: bool | None = None
    task: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLine:
    """One memory as a list shows it."""

    id: str
    state: MemoryState
    pinned: bool
    question: str
    task: str
    origin: str
    final_vote_share: float
    created_at: datetime
    revision: int
    uses: int
    fixed: int
    broken: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPage:
    """Some memories in order. ``after`` and ``before``: places from which the next and the previous page begin.

    ``looked``: how many sealed questions were opened for a search that is not at its end; None: it is complete.
    """

    lines: tuple[MemoryLine, ...]
    after: str | None
    before: str | None
    looked: int | None = None


def browse(
    database: Database,
    vault: Vault,
    namespace: str,
    *,
    wanted: Wanted = Wanted(),
    order: Order = Order.NEWEST,
    after: str | None = None,
    before: str | None = None,
    size: int = SIZE,
    seconds: float = _SECONDS,
) -> MemoryPage:
    """One page, of at most ``size``. ``after`` or ``before``: a place that another page named.

    ``seconds``: how long a search opens sealed questions before it says how far it came.

    Raises ``NotFound`` for an unknown namespace, ``InputError`` for a place that is none, ``VaultLocked``.
    """
    walk = _Walk(namespace, wanted, order, backwards=before is not None, vault=vault, sqlite=database.sqlite)
    at = after if before is None else before
    place = None if at is None else walk.place(at)
    with database.read() as session:
        revision_of(session, namespace)
        found, last, looked = walk.take(session, place, size + 1, time.monotonic() + seconds)
        more, found = len(found) > size, found[:size]
        ids = [memory_id for _, memory_id in (reversed(found) if walk.backwards else found)]
        lines = _lines(session, namespace, ids, vault)
    far = last if looked is not None else found[-1] if more else None  # as the walk goes
    near = None if place is None else found[0] if found else place
    next_one, previous = (near, far) if walk.backwards else (far, near)
    return MemoryPage(lines=lines, after=walk.name(next_one), before=walk.name(previous), looked=looked)


def state_counts(database: Database, namespace: str) -> dict[MemoryState, int]:
    """How many memories of the namespace are in each state; purged ones are not among them."""
    query = select(MemoryRow.state, func.count()).where(MemoryRow.namespace == namespace).group_by(MemoryRow.state)
    with database.read() as session:
        found = {MemoryState(state): count for state, count in session.execute(query)}
    return {state: found.get(state, 0) for state in MemoryState if state is not MemoryState.PURGED}


_Place = tuple[Any, str]  # what the order goes by, and the id


class _Walk:
    """The ids of one namespace in one order, from a place on."""

    def __init__(
        self, namespace: str, wanted: Wanted, order: Order, *, backwards: bool, vault: Vault, sqlite: bool
    ) -> None:
        self.backwards = backwards
        self._namespace = namespace
        self._vault = vault
        self._value, self._read, self._show, down = _SORTED[order]
        self._down = down is not backwards
        # The database searches plain questions; what may be sealed is opened here.
        plain = isinstance(vault, PlainVault)
        self._text = None if plain or not wanted.text else wanted.text.lower()
        self._query = self._base(order).where(*_conditions(namespace, wanted))
        if plain and wanted.text:
            # SQLite's LIKE takes upper and lower case alike by itself, a third quicker than lower() of both sides.
            contains = MemoryRow.question.contains if sqlite else MemoryRow.question.icontains
            self._query = self._query.where(contains(wanted.text, autoescape=True))

    def _base(self, order: Order) -> Select[*tuple[Any, ...]]:
        columns = [MemoryRow.id, MemoryRow.question] if self._text else [MemoryRow.id]
        if order is Order.CHANGED:  # the chain is that order: walking it back reads no more than the page
            last = (EventRow.memory_id == MemoryRow.id) & (EventRow.revision == MemoryRow.revision)
            changes = select(EventRow.revision.label("value"), *columns).select_from(EventRow).join(MemoryRow, last)
            return changes.where(EventRow.namespace == self._namespace)
        if order not in _COUNTED:
            return select(self._value.label("value"), *columns)
        counted = select(UseRow.memory_id, func.count().label("n")).where(
            UseRow.memory_namespace == self._namespace, *_COUNTED[order]
        )
        uses = counted.group_by(UseRow.memory_id).subquery()
        self._value = uses.c.n
        return select(self._value.label("value"), *columns).join(uses, uses.c.memory_id == MemoryRow.id)

    def take(
        self, session: Session, place: _Place | None, count: int, until: float
    ) -> tuple[list[_Place], _Place | None, int | None]:
        """At most ``count`` places, the last one looked at, and how many were looked at if that was not all."""
        if self._text is None:
            return [(value, memory_id) for value, memory_id in session.execute(self._from(place, count))], None, None
        found: list[_Place] = []
        looked = 0
        for piece in self._pieces(session, place):
            for value, memory_id, question in piece:
                place, looked = (value, memory_id), looked + 1
                if self._text in self._vault.open(self._namespace, question).lower():
                    found.append(place)
                    if len(found) == count:
                        return found, place, None
            if time.monotonic() > until and len(piece) == _PIECE:
                return found, place, looked
        return found, place, None

    def _pieces(self, session: Session, place: _Place | None) -> Iterator[list[Any]]:
        while True:
            piece = list(session.execute(self._from(place, _PIECE)))
            yield piece
            if len(piece) < _PIECE:
                return
            place = piece[-1][0], piece[-1][1]

    def _from(self, place: _Place | None, count: int) -> Select[*tuple[Any, ...]]:
        query = self._query
        if place is not None:
            mine = tuple_(self._value, MemoryRow.id)
            there = tuple_(literal(place[0], self._value.type), literal(place[1]))
            query = query.where(mine < there if self._down else mine > there)
        order = (self._value, MemoryRow.id)
        return query.order_by(*(column.desc() if self._down else column.asc() for column in order)).limit(count)

    def place(self, text: str) -> _Place:
        """Raises ``InputError`` for what ``name`` never made."""
        value, separator, memory_id = text.partition("~")
        try:
            if not separator or not _ID.fullmatch(memory_id):
                raise ValueError
            return self._read(value), memory_id
        except (ValueError, OverflowError, OSError):  # the last two: a time beyond the calendar
            raise InputError(f"{text[:80]!r} is no place in this order: begin at the first page") from None

    def name(self, place: _Place | None) -> str | None:
        return None if place is None else f"{self._show(place[0])}~{place[1]}"


def _conditions(namespace: str, wanted: Wanted) -> Iterator[ColumnElement[bool]]:
    yield MemoryRow.namespace == namespace
    if wanted.state is not None:
        yield MemoryRow.state == wanted.state.value
    if wanted.pinned is not None:
        yield MemoryRow.pinned.is_(wanted.pinned)
    if wanted.task:
        yield MemoryRow.task == wanted.task


def _lines(session: Session, namespace: str, ids: list[str], vault: Vault) -> tuple[MemoryLine, ...]:
    columns = [getattr(MemoryRow, name) for name in _COLUMNS]
    counts = (USES.label("uses"), FIXED.label("fixed"), BROKEN.label("broken"))
    query = select(*columns, *counts).where(MemoryRow.namespace == namespace, MemoryRow.id.in_(ids))
    found = {row["id"]: row for row in session.execute(query).mappings()} if ids else {}
    lines = (dict(found[memory_id]) for memory_id in ids if memory_id in found)
    return tuple(
        MemoryLine(
            **line | {"state": MemoryState(line["state"]), "question": vault.open(namespace, line["question"])}
        )
        for line in lines
    )


_COLUMNS = ("id", "state", "pinned", "question", "task", "origin", "final_vote_share", "created_at", "revision")
_COUNTED: dict[Order, tuple[ColumnElement[bool], ...]] = {
    Order.USED: (),
    Order.FIXED: (UseRow.outcome == UseOutcome.FIXED.value,),
    Order.BROKEN: (UseRow.outcome == UseOutcome.BROKEN.value,),
}


def _whole(text: str) -> int:
    if len(text) > _DIGITS:  # no database counts further
        raise ValueError
    return int(text)


def _moment(text: str) -> datetime:
    return datetime.fromtimestamp(int(text[:-6] or "0"), UTC).replace(microsecond=int(text[-6:]))


def _microseconds(moment: datetime) -> str:
    return f"{int(moment.timestamp())}{moment.microsecond:06d}"


_SORTED: dict[Order, tuple[Any, Callable[[str], Any], Callable[[Any], str], bool]] = {
    Order.NEWEST: (MemoryRow.created_at, _moment, _microseconds, True),
    Order.OLDEST: (MemoryRow.created_at, _moment, _microseconds, False),
    Order.CHANGED: (EventRow.revision, _whole, str, True),
    Order.BEST_VOTES: (MemoryRow.final_vote_share, float, repr, True),
    Order.WORST_VOTES: (MemoryRow.final_vote_share, float, repr, False),
    **dict.fromkeys(_COUNTED, (None, _whole, str, True)),
}
"""What each order goes by, how a place in it is read and written, and whether the highest comes first."""
