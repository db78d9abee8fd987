"""A map of a namespace: input keys laid flat along the two directions in which they differ most. Looks only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from elm_agent.storage.browsing.sample import sample

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank

_BLOCK = 8  # directions that are looked for together, so that the first two settle quickly
_ROUNDS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class BankMap:
    """``places``: (x, y) of each memory; ``shares``: of the variance, along x and y; ``active``: of how many."""

    ids: tuple[str, ...]
    questions: tuple[str, ...]
    places: tuple[tuple[float, float], ...]
    shares: tuple[float, float]
    active: int


def bank_map(bank: Bank, namespace: str, *, most: int) -> BankMap:
    """Of about ``most`` active memories at the most, spread evenly. Raises ``NotFound``, ``VaultLocked``."""
    found = sample(bank.database, bank.vault, namespace, most=most)
    places_N2, shares = principal_plane(found.keys_NE)
    return BankMap(
        ids=found.ids,
        questions=found.questions,
        places=tuple((float(x), float(y)) for x, y in places_N2),
        shares=shares,
        active=found.active,
    )


def principal_plane(rows_NE: NDArray[np.float32]) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """The first two principal components of the rows: (N, 2) scores, and their shares of the variance.

    By orthogonal iteration with a block of directions (Golub & Van Loan, Matrix Computations, section 8.2.4), which
    costs a fraction of a whole decomposition. The sign of each direction is such that its largest score is positive.
    """
    count, width = len(rows_NE), rows_NE.shape[1] if rows_NE.ndim == 2 else 0
    block = min(_BLOCK, width)
    if count < 2 or block == 0:
        return np.zeros((count, 2)), (0.0, 0.0)
    centred = rows_NE.astype(np.float64) - rows_NE.mean(axis=0, dtype=np.float64)
    total = float((centred**2).sum())
    if total <= 1e-12 * count:
        return np.zeros((count, 2)), (0.0, 0.0)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((width, block)))[0]
    for _ in range(_ROUNDS):
        basis = np.linalg.qr(centred.T @ (centred @ basis))[0]
    left, values, _ = np.linalg.svd(centred @ basis, full_matrices=False)
    scores = np.zeros((count, 2))
    kept = min(2, len(values))
    scores[:, :kept] = left[:, :kept] * values[:kept]
    peaks = scores[np.abs(scores).argmax(axis=0), [0, 1]]
    scores *= np.where(peaks < 0, -1.0, 1.0)
    shares = [float(value**2 / total) for value in values[:2]] + [0.0, 0.0]
    return scores, (shares[0], shares[1])
