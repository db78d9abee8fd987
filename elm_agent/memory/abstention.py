"""How likely a memory helps, fitted to what uses told: a logistic curve over similarity and utility.

Numbers only. A use counts for help and for harm by the table of ``storage.posterior``; what made no difference says
nothing of either. The utility of a use is what was known before it, so that no use explains itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from elm_agent.records import Calibration, digest_of, question_digest
from elm_agent.storage.posterior import Posterior, Weights, shares

if TYPE_CHECKING:
    from elm_agent.storage.calibrations import UseSeen

Array = NDArray[np.float64]

_ROUNDS, _SETTLED = 100, 1e-10  # of Newton's method
_FLAT = 1e-9  # a feature that spreads less is one number


@dataclass(frozen=True, slots=True)
class Curve:
    """log(p / (1 - p)) = intercept + of_similarity * similarity + of_utility * utility."""

    intercept: float
    of_similarity: float
    of_utility: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """N uses that told of help or harm: features, and how much each counted for either, in [0, 1]."""

    features_N2: Array  # similarity, utility before the use
    helped_N: Array
    hurt_N: Array

    @property
    def uses(self) -> int:
        return len(self.helped_N)


@dataclass(frozen=True, slots=True, kw_only=True)
class Abstaining:
    """Whether to use what is near. ``calibration`` None: there is none yet, and nothing is abstained from."""

    calibration: Calibration | None
    min_chance: float = 0.5
    explore: float = 0.0
    seed: int = 0

    @property
    def uses(self) -> int:
        """On how many it was fitted."""
        return 0 if self.calibration is None else self.calibration.uses

    def chance(self, similarity: float, utility: float) -> float | None:
        """Of helping rather than hurting; None where nobody knows."""
        return None if self.calibration is None else self.calibration.chance(similarity, utility)

    def explores(self, question: str) -> bool:
        """Whether this question is one of those that use a memory all the same: the same ones every time."""
        return fraction_of("abstention", self.seed, question) < self.explore


def fraction_of(what: str, seed: int, question: str) -> float:
    """A number in [0, 1) that depends on these alone."""
    digest = digest_of([what, seed, question_digest(question)])
    return int(digest.removeprefix("sha256:")[:13], 16) / 16**13


def samples_of(seen: Sequence[UseSeen], weights: Weights) -> Samples:
    """From uses, oldest first. What made no difference moves the utility of later uses, and is no sample itself."""
    known: dict[tuple[str, str], tuple[float, float, float]] = {}
    features, helped, hurt = [], [], []
    for use in seen:
        told = shares(use.route, use.outcome, use.effect, verifier=weights.verifier)
        if told is None:
            continue
        before = known.get(use.memory, (weights.prior,) * 3)
        if told[0] or told[2]:
            features.append((use.similarity, Posterior(*before, uses=0).utility))
            helped.append(told[0])
            hurt.append(told[2])
        known[use.memory] = (before[0] + told[0], before[1] + told[1], before[2] + told[2])
    return Samples(
        features_N2=np.array(features, dtype=np.float64).reshape(-1, 2),
        helped_N=np.array(helped, dtype=np.float64),
        hurt_N=np.array(hurt, dtype=np.float64),
    )


def fit(samples: Samples, *, ridge: float = 1.0) -> Curve:
    """The curve that makes the uses likeliest, less ``ridge`` / 2 times the squares of its three numbers.

    The slopes are at least 0: nearer, or more useful so far, is never worse. The best curve that keeps to it is the
    free best one of the features that it uses, so each set of them is tried. Of no uses it is flat, at one half.
    Features are measured from their mean in their standard deviations, so that the pull is the same for all of them,
    and that on the level is one on the level of what was seen.
    """
    if not samples.uses:
        return Curve(0.0, 0.0, 0.0)
    centre_2, spread_2 = samples.features_N2.mean(axis=0), samples.features_N2.std(axis=0)
    spread_2 = np.where(spread_2 > _FLAT, spread_2, 1.0)
    centred_N2 = (samples.features_N2 - centre_2) / spread_2
    best, likeliest = np.zeros(3), -np.inf
    for used in ([0, 1], [0], [1], []):
        design_ND = np.column_stack([np.ones(samples.uses), centred_N2[:, used]])
        found_D = _newton(design_ND, samples, ridge)
        likelihood = _likelihood(design_ND, samples, found_D, ridge)
        if bool((found_D[1:] >= 0).all()) and likelihood > likeliest:
            best, likeliest = np.zeros(3), likelihood
            best[[0, *(feature + 1 for feature in used)]] = found_D
    slopes_2 = best[1:] / spread_2
    return Curve(float(best[0] - centre_2 @ slopes_2), float(slopes_2[0]), float(slopes_2[1]))


def _newton(design_ND: Array, samples: Samples, ridge: float) -> Array:
    """Iteratively reweighted least squares; the penalty makes the optimum one, and each step well defined."""
    weights_N = samples.helped_N + samples.hurt_N
    found_D = np.zeros(design_ND.shape[1])
    for _ in range(_ROUNDS):
        chance_N = _logistic(design_ND @ found_D)
        slope_D = design_ND.T @ (samples.helped_N - weights_N * chance_N) - ridge * found_D
        bent_DD = (design_ND.T * (weights_N * chance_N * (1.0 - chance_N))) @ design_ND
        step_D = np.linalg.solve(bent_DD + ridge * np.eye(len(found_D)), slope_D).astype(np.float64)
        here, scale = _likelihood(design_ND, samples, found_D, ridge), 1.0
        while scale > _SETTLED and _likelihood(design_ND, samples, found_D + scale * step_D, ridge) < here:
            scale /= 2  # a whole step may jump over the top
        found_D = found_D + scale * step_D
        if float(np.abs(step_D).max()) < _SETTLED:
            break
    return found_D


def _likelihood(design_ND: Array, samples: Samples, at_D: Array, ridge: float) -> float:
    logits_N = design_ND @ at_D
    told_N = samples.helped_N * np.logaddexp(0.0, -logits_N) + samples.hurt_N * np.logaddexp(0.0, logits_N)
    return -float(told_N.sum()) - ridge / 2 * float(at_D @ at_D)


def _logistic(logits_N: Array) -> Array:
    positive: Array = 1.0 / (1.0 + np.exp(-np.clip(logits_N, -700.0, 700.0)))
    return positive
