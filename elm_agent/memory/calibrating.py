"""Fits the calibration of a namespace anew from its recorded uses and keeps it, with how many uses that were."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from elm_agent.memory.abstention import fit, samples_of
from elm_agent.records import Calibration, KeyKind
from elm_agent.storage.posterior import Weights

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank


GROWTH = 4
"""A fit is worn when a quarter as many uses came since as it was made of: fewer move it little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    """``kind``: of the keys by which memories are found. ``min_uses``: that told of help or harm, before anything is
    fitted; ``window``: at most so many of the newest uses are read. ``ridge``: see ``abstention.fit``."""

    kind: KeyKind = KeyKind.INPUT
    weights: Weights = field(default_factory=Weights)
    min_uses: int = 30
    window: int = 10_000
    ridge: float = 1.0

    def if_grown(self, bank: Bank, namespace: str) -> str | None:
        """As a call, where enough uses are new; None: too few are. Raises ``StorageError``, ``NotFound``."""
        last = bank.calibrations.get(namespace, self.kind)
        if last is not None and last.model_id != bank.namespace(namespace).model.id:
            last = None
        enough = self.min_uses if last is None else max(1, last.uses // GROWTH)
        new = bank.calibrations.noted_since(namespace, self.kind, None if last is None else last.fitted_at)
        return None if new < enough else self(bank, namespace)

    def __call__(self, bank: Bank, namespace: str) -> str:
        """Fit, keep, and say so in a clause; or why it was left as it is. Raises ``StorageError``, ``NotFound``."""
        samples = samples_of(bank.calibrations.seen(namespace, self.kind, newest=self.window), self.weights)
        if samples.uses < self.min_uses:
            return f"{samples.uses} uses told of help or harm, a calibration needs {self.min_uses}"
        curve = fit(samples, ridge=self.ridge)
        with bank.database.read() as session:
            now = bank.database.now(session)
        calibration = Calibration(
            namespace=namespace,
            kind=self.kind,
            model_id=bank.namespace(namespace).model.id,
            intercept=curve.intercept,
            of_similarity=curve.of_similarity,
            of_utility=curve.of_utility,
            uses=samples.uses,
            helped=float(samples.helped_N.sum()),
            hurt=float(samples.hurt_N.sum()),
            fitted_at=now,
        )
        bank.calibrations.put(calibration)
        even = calibration.threshold(0.5)
        said = "similarity says nothing" if even is None else f"even at similarity {even:.3f}"
        return f"calibrated on {samples.uses} uses, helped {calibration.helped:g}, hurt {calibration.hurt:g}: {said}"
