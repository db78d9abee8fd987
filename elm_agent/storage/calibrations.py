"""Where the calibration of a namespace is kept, and the uses that it is fitted to. Fits nothing itself.

A calibration is a few numbers over all uses together; it names no memory and holds no text.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import func, select

from elm_agent.errors import NotFound
from elm_agent.records import Calibration, Effect, KeyKind, Route, UseOutcome
from elm_agent.storage.ledger.changes import check_still_here
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import CalibrationRow, NamespaceRow, UseRow


@dataclass(frozen=True, slots=True, kw_only=True)
class UseSeen:
    """What a fit sees of a use. ``memory``: (its namespace, its id)."""

    memory: tuple[str, str]
    similarity: float
    route: Route
    outcome: UseOutcome
    effect: Effect | None


class Calibrations:
    """Every method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, namespace: str, kind: KeyKind) -> Calibration | None:
        """The last one, or None."""
        with self._database.read() as session:
            row = session.get(CalibrationRow, (namespace, kind.value))
            if row is None:
                return None
            return Calibration(
                namespace=row.namespace,
                kind=KeyKind(row.kind),
                model_id=row.model_id,
                intercept=row.intercept,
                of_similarity=row.of_similarity,
                of_utility=row.of_utility,
                uses=row.uses,
                helped=row.helped,
                hurt=row.hurt,
                fitted_at=row.fitted_at,
            )

    def put(self, calibration: Calibration) -> None:
        """In place of the last one. Raises ``NotFound`` for a namespace that is not there, ``BankMoved``."""
        with self._database.write() as session:
            if session.get(NamespaceRow, calibration.namespace) is None:
                raise NotFound(f"namespace {calibration.namespace[:100]!r} is not in this bank")
            session.merge(CalibrationRow(**asdict(calibration) | {"kind": calibration.kind.value}))
            session.flush()
            check_still_here(session, calibration.namespace)

    def noted_since(self, namespace: str, kind: KeyKind, at: datetime | None) -> int:
        """How many uses of memories found by keys of ``kind`` came after ``at``; None: of all times."""
        query = (
            select(func.count())
            .select_from(UseRow)
            .where(UseRow.namespace == namespace, UseRow.key_kind == kind.value)
        )
        if at is not None:
            query = query.where(UseRow.created_at > at)
        with self._database.read() as session:
            return session.scalar(query) or 0

    def seen(self, namespace: str, kind: KeyKind, *, newest: int) -> list[UseSeen]:
        """The ``newest`` uses in ``namespace`` of memories found by keys of ``kind``, oldest first."""
        query = select(
            UseRow.memory_namespace,
            UseRow.memory_id,
            UseRow.similarity,
            UseRow.route,
            UseRow.outcome,
            UseRow.feedback_effect,
        ).where(UseRow.namespace == namespace, UseRow.key_kind == kind.value)
        query = query.order_by(UseRow.created_at.desc(), UseRow.id.desc()).limit(newest)
        with self._database.read() as session:
            found = [
                UseSeen(
                    memory=(home, memory_id),
                    similarity=similarity,
                    route=Route(route),
                    outcome=UseOutcome(outcome),
                    effect=None if effect is None else Effect(effect),
                )
                for home, memory_id, similarity, route, outcome, effect in session.execute(query)
            ]
        return found[::-1]
