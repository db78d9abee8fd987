"""What a memory is worth, as far as its uses tell: a Dirichlet posterior over helped, no difference, hurt.

Pure arithmetic on counts of uses; knows no database. Nothing of it is stored: it is made anew from the uses, so a
word that is taken back leaves no trace, and the order of uses does not matter. docs/utility.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from elm_agent.records import Effect, Route, UseOutcome

Kind = tuple[Route, UseOutcome, Effect | None]
"""All that a use says of its memory: route, settled outcome, what the user's feedback tells."""

Evidence = Mapping[Kind, int]
"""How many uses of each kind a memory has."""

Shares = tuple[float, float, float]
"""How much one use counts as (helped, no difference, hurt); together at most 1."""

_OF_EFFECT: dict[Effect, Shares] = {
    Effect.HELPED: (1.0, 0.0, 0.0),
    Effect.SAME: (0.0, 1.0, 0.0),
    Effect.HURT: (0.0, 0.0, 1.0),
    Effect.PERHAPS_HELPED: (0.5, 0.5, 0.0),
    Effect.PERHAPS_HURT: (0.0, 0.5, 0.5),
}
_OF_OUTCOME = {
    UseOutcome.FIXED: Effect.HELPED,
    UseOutcome.BROKEN: Effect.HURT,
    UseOutcome.BOTH_RIGHT: Effect.SAME,
    UseOutcome.BOTH_WRONG: Effect.SAME,
}


@dataclass(frozen=True, slots=True)
class Weights:
    """``prior``: uses' worth of each of the three before the first use. ``verifier``: of a use only it has judged."""

    prior: float = 1.0
    verifier: float = 0.25


@dataclass(frozen=True, slots=True)
class Posterior:
    """Dirichlet(helped, same, hurt), all above 0; ``uses`` are those that said anything."""

    helped: float
    same: float
    hurt: float
    uses: int

    @property
    def utility(self) -> float:
        """The mean of (share helped - share hurt), in [-1, 1]; 0: as good as no memory."""
        return (self.helped - self.hurt) / self._total

    @property
    def deviation(self) -> float:
        """The standard deviation of the same difference.

        Var(h - x) = (A (a_h + a_x) - (a_h - a_x)^2) / (A^2 (A + 1)), A being the sum of the parameters.
        """
        total, moved = self._total, self.helped + self.hurt
        spread = total * moved - (self.helped - self.hurt) ** 2
        return math.sqrt(max(spread, 0.0) / (total + 1.0)) / total

    @property
    def harm(self) -> float:
        """The probability that it hurts more often than it helps.

        Of a Dirichlet x / (h + x) is Beta(a_x, a_h); above one half it hurts more.
        """
        from scipy.special import betainc  # heavy, and asked for only where a memory may be harmful

        return float(betainc(self.helped, self.hurt, 0.5))

    def drawn(self, generator: np.random.Generator) -> float:
        """One draw of (share helped - share hurt): Thompson sampling."""
        helped, _, hurt = generator.dirichlet((self.helped, self.same, self.hurt))
        return float(helped - hurt)

    def plain(self) -> dict[str, float]:
        """All of it as numbers, for JSON."""
        counts = {"helped": self.helped, "same": self.same, "hurt": self.hurt, "uses": self.uses}
        return counts | {"utility": self.utility, "deviation": self.deviation, "harm": self.harm}

    @property
    def _total(self) -> float:
        return self.helped + self.same + self.hurt


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmRule:
    """A memory is quarantined when it is harmful with this ``probability`` after at least so many ``uses``."""

    probability: float
    uses: int
    weights: Weights

    def broken_by(self, found: Posterior) -> str | None:
        """Why it is to be quarantined, or None."""
        if found.uses < self.uses or (harm := found.harm) < self.probability:
            return None
        prior = self.weights.prior
        return (
            f"harmful with probability {harm:.4f}, at least {self.probability:g}: helped {found.helped - prior:g}, "
            f"no difference {found.same - prior:g}, hurt {found.hurt - prior:g} in {found.uses} uses"
        )


def posterior(evidence: Evidence, weights: Weights) -> Posterior:
    """The posterior of one memory."""
    helped = same = hurt = weights.prior
    uses = 0
    for kind, count in evidence.items():
        if (found := shares(*kind, verifier=weights.verifier)) is not None:
            helped += count * found[0]
            same += count * found[1]
            hurt += count * found[2]
            uses += count
    return Posterior(helped, same, hurt, uses)


def shares(route: Route, outcome: UseOutcome, effect: Effect | None, *, verifier: float) -> Shares | None:
    """What one use says; None: nothing. A reference answer counts more than a user's word, that more than a verifier.

    Only the strongest word on a use counts, so each use counts once.
    """
    if route is Route.FAILED_MEMORY and effect is None:  # nobody compared the memory's answer with the other
        return None
    if outcome is UseOutcome.BOTH_RIGHT and route in (Route.ZERO_SHOT, Route.DEFERRED):
        return _OF_EFFECT[Effect.HURT]  # its answer was another than a right one; verifier or person stood before it
    if outcome is not UseOutcome.UNKNOWN:
        return _OF_EFFECT[_OF_OUTCOME[outcome]]
    if effect is not None:
        return _OF_EFFECT[effect]
    match route:
        case Route.AGREED:
            return _OF_EFFECT[Effect.SAME]
        case Route.MEMORY | Route.DEFERRED:
            return verifier, 0.0, 0.0
        case Route.ZERO_SHOT:
            return 0.0, 0.0, verifier
        case Route.OUTVOTED:
            return 0.0, verifier, 0.0
    return None  # of an answer of the memory alone, too: it was compared with nothing
