"""What eviction and lists need to know of many memories at once, read in pages. Decides nothing, changes nothing.

SQL narrows a namespace down to what a rule may be true for; the rule itself, in ``memory.eviction``, has the last
word. Every page is a short read of its own, found again by the id where the last one ended, so a pass over a million
memories holds neither a lock nor a million rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Select, and_, case, exists, func, or_, select
from sqlalchemy.orm import Session, load_only

from elm_agent.records import KeyKind, MemoryState, ModelFingerprint, Route, UseOutcome
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.rows import fingerprint_of, unpack
from elm_agent.storage.sql.schema import KeyRow, MemoryRow, NamespaceRow, UseRow
from elm_agent.storage.uses import count_uses
from elm_agent.storage.vault.base import PlainVault, Vault

PAGE = 1000
_ROUNDING = 1e-9

_ITS_OWN = (Route.MEMORY.value, Route.AGREED.value, Route.MEMORY_ALONE.value)  # routes that returned its answer
USEFUL = and_(UseRow.route.in_(_ITS_OWN), UseRow.outcome != UseOutcome.BROKEN.value)
"""A use that helped, as far as is known: the memory's answer was given, and did not turn out to be the wrong one."""

SETTLED = UseRow.outcome != UseOutcome.UNKNOWN.value
_LIGHT = load_only(
    MemoryRow.state,
    MemoryRow.pinned,
    MemoryRow.question,
    MemoryRow.task,
    MemoryRow.subject,
    MemoryRow.origin,
    MemoryRow.virtual_tokens,
    MemoryRow.final_vote_share,
    MemoryRow.created_at,
    MemoryRow.state_since,
    MemoryRow.valid_until,
    raiseload=True,
)
_MINE = and_(UseRow.memory_namespace == MemoryRow.namespace, UseRow.memory_id == MemoryRow.id)
_NET = case((UseRow.outcome == UseOutcome.FIXED.value, 1), (UseRow.outcome == UseOutcome.BROKEN.value, -1), else_=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFacts:
    """What is known of one memory without its tensor, keys and episode; the counts are over all of its uses."""

    namespace: str
    id: str
    state: MemoryState
    pinned: bool
    question: str
    task: str
    subject: str | None
    origin: str
    virtual_tokens: int
    final_vote_share: float
    model: ModelFingerprint  # of the namespace, and so of each of its memories
    created_at: datetime
    state_since: datetime
    valid_until: datetime | None
    uses: int = 0
    useful: int = 0
    settled: int = 0
    fixed: int = 0
    broken: int = 0
    last_useful: datetime | None = None

    @property
    def utility(self) -> float:
        """(fixed - broken) / settled uses, in [-1, 1]; 0 when nothing is settled."""
        return (self.fixed - self.broken) / self.settled if self.settled else 0.0

    @property
    def fresh_at(self) -> datetime:
        """When it was last useful, or came into its state: a new or restored memory is not an idle one."""
        return self.state_since if self.last_useful is None else max(self.last_useful, self.state_since)

    @property
    def worth(self) -> tuple[int, datetime, float, str]:
        """The order of usefulness, least first: what it fixed less what it broke, then how lately it was useful,
        then its final vote share, then its id, which is its age.
        """
        return self.fixed - self.broken, self.fresh_at, self.final_vote_share, self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Memories for which any of these may hold; a field that is None asks for nothing."""

    created_before: datetime | None = None
    expired_at: datetime | None = None
    state_before: datetime | None = None  # in its state since before then
    idle_since: datetime | None = None  # see ``MemoryFacts.fresh_at``; active ones only
    utility_below: tuple[float, int] | None = None  # and with at least so many settled uses; active ones only
    model_not_in: frozenset[str] | None = None  # ids or names
    everything: bool = False

    def __or__(self, other: Wanted) -> Wanted:
        """What either asks for. A field that both name is the caller's mistake and keeps ``other``'s."""
        named = {name: value for name in other.__slots__ if (value := getattr(other, name)) not in (None, False)}
        return replace(self, **named)


class Selection:
    """The memories of one namespace. ``states``: only these; by default all that are not retired."""

    def __init__(
        self,
        database: Database,
        namespace: str,
        *,
        vault: Vault | None = None,
        states: Sequence[MemoryState] | None = None,
        page: int = PAGE,
    ) -> None:
        self.namespace = namespace
        self._database = database
        self._vault = vault or PlainVault()
        self._page = page
        # an inequality: a list of states would tempt planners away from the order of the primary key
        self._of: list[ColumnElement[bool]] = [MemoryRow.namespace == namespace]
        if states is None:
            self._of.append(MemoryRow.state != MemoryState.RETIRED.value)
        else:
            self._of.append(MemoryRow.state.in_([state.value for state in states]))

    def pages(
        self, wanted: Wanted, *, newest_first: bool = False, subject: str | None = None
    ) -> Iterator[list[MemoryFacts]]:
        """Pages of at most ``page`` memories, by id; ids are in the order of creation. ``subject``: only theirs."""
        narrowed = []
        if subject is not None:  # what was stored before encryption was switched on bears the plain name
            narrowed.append(MemoryRow.subject.in_({subject, self._vault.blind(self.namespace, subject)}))
        query = select(MemoryRow).where(*self._of, *narrowed, _any_of(wanted)).limit(self._page)
        query = query.order_by(MemoryRow.id.desc() if newest_first else MemoryRow.id)
        last: str | None = None
        while True:
            after = query
            if last is not None:
                after = query.where(MemoryRow.id < last if newest_first else MemoryRow.id > last)
            page = self._read(after)
            if page:
                yield page
            if len(page) < self._page:
                return
            last = page[-1].id

    def of(self, ids: Sequence[str]) -> Iterator[list[MemoryFacts]]:
        """The memories of ``ids`` that are still among these, in that order, in pages."""
        for start in range(0, len(ids), self._page):
            some = ids[start : start + self._page]
            found = {
                facts.id: facts for facts in self._read(select(MemoryRow).where(*self._of, MemoryRow.id.in_(some)))
            }
            yield [found[memory_id] for memory_id in some if memory_id in found]

    def active(self) -> int:
        with self._database.read() as session:
            query = select(func.count()).select_from(MemoryRow).where(*_active(self.namespace))
            return session.execute(query).scalar_one()

    def by_worth(self) -> list[tuple[str, bool]]:
        """(id, pinned) of every active memory in the order of ``MemoryFacts.worth``, least useful first."""
        net, last = func.sum(_NET).label("net"), func.max(case((USEFUL, UseRow.created_at))).label("last")
        uses = select(UseRow.memory_id, net, last).where(UseRow.memory_namespace == self.namespace)
        used = uses.group_by(UseRow.memory_id).subquery()
        fresh_at = case((used.c.last > MemoryRow.state_since, used.c.last), else_=MemoryRow.state_since)
        query = select(MemoryRow.id, MemoryRow.pinned).outerjoin(used, used.c.memory_id == MemoryRow.id)
        query = query.where(*_active(self.namespace)).order_by(
            func.coalesce(used.c.net, 0), fresh_at, MemoryRow.final_vote_share, MemoryRow.id
        )
        with self._database.read() as session:
            return [(memory_id, pinned) for memory_id, pinned in session.execute(query)]

    def input_keys(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """``keys`` of the kind that every memory has."""
        return self.keys(ids, KeyKind.INPUT)

    def keys(self, ids: Sequence[str], kind: KeyKind) -> NDArray[np.float32]:
        """(len(ids), E) unit rows; a memory that is gone meanwhile, or has no such key, is a row of zeros."""
        of = KeyRow.namespace == self.namespace, KeyRow.kind == kind.value
        rows: list[NDArray[np.float32]] = []
        width = 0
        for start in range(0, len(ids), self._page):
            some = ids[start : start + self._page]
            query = select(KeyRow.memory_id, KeyRow.vector).where(*of, KeyRow.memory_id.in_(some))
            with self._database.read() as session:
                found = {memory_id: unpack(vector) for memory_id, vector in session.execute(query)}
            width = width or len(next(iter(found.values()), ()))
            zeros = np.zeros(width, dtype=np.float32)
            rows.append(np.stack([found.get(memory_id, zeros) for memory_id in some]))
        return np.concatenate(rows) if rows else np.zeros((0, 0), dtype=np.float32)

    def _read(self, query: Select[MemoryRow]) -> list[MemoryFacts]:
        with self._database.read() as session:
            rows = session.scalars(query.options(_LIGHT)).all()
            counted = _counts(session, self.namespace, [row.id for row in rows])
            model = fingerprint_of(session.get_one(NamespaceRow, self.namespace)) if rows else None
        return [_facts(row, model, self._vault, counted.get(row.id, {})) for row in rows if model]


def _active(namespace: str) -> tuple[ColumnElement[bool], ...]:
    return MemoryRow.namespace == namespace, MemoryRow.state == MemoryState.ACTIVE.value


def _any_of(wanted: Wanted) -> ColumnElement[bool]:
    if wanted.everything:
        return MemoryRow.id.is_not(None)
    active = MemoryRow.state == MemoryState.ACTIVE.value
    asked: list[ColumnElement[bool]] = [MemoryRow.id.is_(None)]  # nothing, unless something is asked for
    if wanted.created_before is not None:
        asked.append(MemoryRow.created_at < wanted.created_before)
    if wanted.expired_at is not None:
        asked.append(MemoryRow.valid_until <= wanted.expired_at)
    if wanted.state_before is not None:
        asked.append(MemoryRow.state_since < wanted.state_before)
    if wanted.idle_since is not None:
        lately = exists().where(_MINE, USEFUL, UseRow.created_at >= wanted.idle_since).correlate(MemoryRow)
        asked.append(and_(active, MemoryRow.state_since < wanted.idle_since, ~lately))
    if wanted.utility_below is not None:
        below, at_least = wanted.utility_below
        settled = count_uses(SETTLED)
        gained = count_uses(UseRow.outcome == UseOutcome.FIXED.value)
        lost = count_uses(UseRow.outcome == UseOutcome.BROKEN.value)
        asked.append(and_(active, settled >= at_least, gained - lost <= below * settled + _ROUNDING))
    if wanted.model_not_in is not None:
        in_use = or_(NamespaceRow.model_id.in_(wanted.model_not_in), NamespaceRow.model_name.in_(wanted.model_not_in))
        asked.append(~exists().where(NamespaceRow.name == MemoryRow.namespace, in_use).correlate(MemoryRow))
    return or_(*asked)


def _counts(session: Session, namespace: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The use statistics of a page in one grouped look-up; a memory without uses has none."""
    if not ids:
        return {}
    query = (
        select(
            UseRow.memory_id,
            func.count().label("uses"),
            func.count(case((USEFUL, 1))).label("useful"),
            func.count(case((SETTLED, 1))).label("settled"),
            func.count(case((UseRow.outcome == UseOutcome.FIXED.value, 1))).label("fixed"),
            func.count(case((UseRow.outcome == UseOutcome.BROKEN.value, 1))).label("broken"),
            func.max(case((USEFUL, UseRow.created_at))).label("last_useful"),
        )
        .where(UseRow.memory_namespace == namespace, UseRow.memory_id.in_(ids))
        .group_by(UseRow.memory_id)
    )
    return {row.pop("memory_id"): row for row in (dict(found) for found in session.execute(query).mappings())}


def _facts(row: MemoryRow, model: ModelFingerprint, vault: Vault, counts: dict[str, Any]) -> MemoryFacts:
    return MemoryFacts(
        namespace=row.namespace,
        id=row.id,
        state=MemoryState(row.state),
        pinned=row.pinned,
        question=vault.open(row.namespace, row.question),
        task=row.task,
        subject=row.subject,
        origin=row.origin,
        virtual_tokens=row.virtual_tokens,
        final_vote_share=row.final_vote_share,
        model=model,
        created_at=row.created_at,
        state_since=row.state_since,
        valid_until=row.valid_until,
        **counts,
    )
