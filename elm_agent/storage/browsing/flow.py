"""What became of the latest uses: from route to outcome, and how often the answer was right, piece by piece of time.

Uses are counted newest first up to a limit, so the cost does not grow with the bank.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from elm_agent.records import Route, UseOutcome
from elm_agent.storage.indexes.feed import revision_of
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import UseRow

MOST = 10_000
PIECES = 40

_RIGHT_WITH = {UseOutcome.FIXED, UseOutcome.BOTH_RIGHT}
_RIGHT_WITHOUT = {UseOutcome.BROKEN, UseOutcome.BOTH_RIGHT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Consecutive uses. ``with_memory``, ``without``: shares of the settled ones whose returned, and whose plain,
    answer was right; None where none is settled.
    """

    begins: datetime
    uses: int
    settled: int
    with_memory: float | None
    without: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """``counts``: uses by route and outcome. ``stretches``: the same uses in order of time, oldest first."""

    uses: int
    complete: bool  # whether these are all uses of the namespace
    counts: dict[tuple[Route, UseOutcome], int]
    stretches: tuple[Stretch, ...]


def flow(database: Database, namespace: str, *, most: int = MOST, pieces: int = PIECES) -> Flow:
    """Of the newest ``most`` uses that the namespace made. Raises ``NotFound`` for an unknown namespace."""
    of_namespace = UseRow.namespace == namespace
    newest = select(UseRow.id, UseRow.route, UseRow.outcome, UseRow.created_at).where(of_namespace)
    newest = newest.order_by(UseRow.created_at.desc(), UseRow.id.desc()).limit(most)
    with database.read() as session:
        revision_of(session, namespace)
        some = select(UseRow.id).where(of_namespace).order_by(UseRow.created_at.desc(), UseRow.id.desc())
        count = session.execute(select(func.count()).select_from(some.limit(most + 1).subquery())).scalar_one()
        uses = newest.subquery()
        place = func.row_number().over(order_by=(uses.c.created_at.desc(), uses.c.id.desc())) - 1
        numbered = select(place.label("place"), uses).subquery()
        size = max(1, -(-min(count, most) // pieces))
        piece = (numbered.c.place - numbered.c.place % size).label("piece")
        groups = piece, numbered.c.route, numbered.c.outcome
        begins = func.min(numbered.c.created_at)
        found = session.execute(select(*groups, func.count(), begins).group_by(*groups)).all()
    counts: Counter[tuple[Route, UseOutcome]] = Counter()
    parts: dict[int, list[tuple[UseOutcome, int, datetime]]] = {}
    for number, route, outcome, uses_of, moment in found:
        counts[Route(route), UseOutcome(outcome)] += uses_of
        parts.setdefault(number, []).append((UseOutcome(outcome), uses_of, moment))
    stretches = tuple(_stretch(parts[number]) for number in sorted(parts, reverse=True))
    return Flow(uses=counts.total(), complete=count <= most, counts=dict(counts), stretches=stretches)


def _stretch(parts: list[tuple[UseOutcome, int, datetime]]) -> Stretch:
    settled = sum(uses for outcome, uses, _ in parts if outcome is not UseOutcome.UNKNOWN)

    def share(right: set[UseOutcome]) -> float | None:
        return sum(uses for outcome, uses, _ in parts if outcome in right) / settled if settled else None

    return Stretch(
        begins=min(moment for _, _, moment in parts),
        uses=sum(uses for _, uses, _ in parts),
        settled=settled,
        with_memory=share(_RIGHT_WITH),
        without=share(_RIGHT_WITHOUT),
    )
