"""The arithmetic of what a memory is worth, against numbers worked by hand and by another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_agent.records import Effect, Route, UseOutcome
from elm_agent.storage.posterior import Evidence, HarmRule, Kind, Posterior, Weights, posterior, shares

KINDS: st.SearchStrategy[Kind] = st.tuples(
    st.sampled_from(list(Route)), st.sampled_from(list(UseOutcome)), st.none() | st.sampled_from(list(Effect))
)
EVIDENCE: st.SearchStrategy[Evidence] = st.dictionaries(KINDS, st.integers(0, 200), max_size=8)
WEIGHTS = st.builds(Weights, prior=st.floats(0.1, 10), verifier=st.floats(0, 1))
UNKNOWN = UseOutcome.UNKNOWN
HELPED, SAME, HURT = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def of(helped: int = 0, same: int = 0, hurt: int = 0) -> Posterior:
    """After so many uses with a reference answer, on a flat prior."""
    outcomes = {UseOutcome.FIXED: helped, UseOutcome.BOTH_WRONG: same, UseOutcome.BROKEN: hurt}
    return posterior({(Route.MEMORY, outcome, None): count for outcome, count in outcomes.items()}, Weights())


@pytest.mark.parametrize(
    ("route", "outcome", "effect", "expected"),
    [
        # a reference answer is worth a whole use
        (Route.MEMORY, UseOutcome.FIXED, None, HELPED),
        (Route.MEMORY, UseOutcome.BROKEN, None, HURT),
        (Route.AGREED, UseOutcome.BOTH_RIGHT, None, SAME),
        (Route.MEMORY, UseOutcome.BOTH_WRONG, None, SAME),
        # the verifier kept a wrong answer from a right one
        (Route.ZERO_SHOT, UseOutcome.BOTH_RIGHT, None, HURT),
        (Route.ZERO_SHOT, UseOutcome.BOTH_WRONG, None, SAME),
        # it counts more than the user, and the user more than the verifier
        (Route.MEMORY, UseOutcome.FIXED, Effect.HURT, HELPED),
        (Route.MEMORY, UNKNOWN, Effect.HURT, HURT),
        (Route.ZERO_SHOT, UNKNOWN, Effect.HELPED, HELPED),
        (Route.FAILED_MEMORY, UNKNOWN, Effect.HURT, HURT),
        # a user who does not know the right answer leaves half of it open
        (Route.MEMORY, UNKNOWN, Effect.PERHAPS_HURT, (0.0, 0.5, 0.5)),
        (Route.ZERO_SHOT, UNKNOWN, Effect.PERHAPS_HELPED, (0.5, 0.5, 0.0)),
        # agreement is no opinion: it made no difference
        (Route.AGREED, UNKNOWN, None, SAME),
        (Route.MEMORY, UNKNOWN, None, (0.25, 0.0, 0.0)),
        (Route.ZERO_SHOT, UNKNOWN, None, (0.0, 0.0, 0.25)),
        # the verifier preferred the memory's, the plain one was returned
        (Route.DEFERRED, UNKNOWN, None, (0.25, 0.0, 0.0)),
        (Route.DEFERRED, UNKNOWN, Effect.HURT, HURT),
        (Route.DEFERRED, UseOutcome.BOTH_RIGHT, None, HURT),
        # it was heard, and by the vote both its answer and the plain one were wrong
        (Route.OUTVOTED, UNKNOWN, None, (0.0, 0.25, 0.0)),
        (Route.OUTVOTED, UseOutcome.FIXED, None, HELPED),
        # nothing was compared
        (Route.FAILED_MEMORY, UNKNOWN, None, None),
        (Route.FAILED_MEMORY, UseOutcome.BOTH_WRONG, None, None),
        (Route.NO_MEMORY, UNKNOWN, None, None),
        (Route.MEMORY_ALONE, UNKNOWN, None, None),
        (Route.MEMORY_ALONE, UNKNOWN, Effect.PERHAPS_HURT, (0.0, 0.5, 0.5)),
        (Route.MEMORY_ALONE, UseOutcome.FIXED, None, HELPED),
    ],
)
def test_what_a_use_says(
    route: Route, outcome: UseOutcome, effect: Effect | None, expected: tuple[float, float, float] | None
) -> None:
    assert shares(route, outcome, effect, verifier=0.25) == expected


def test_worked_by_hand() -> None:
    unused = of()
    assert (unused.utility, unused.uses) == (0.0, 0)
    assert unused.harm == pytest.approx(0.5)
    assert unused.deviation == pytest.approx(math.sqrt(1 / 6))  # Dirichlet(1, 1, 1): E[(h - x)^2] = 2 / 12
    some = of(helped=3, same=1, hurt=0)  # Dirichlet(4, 2, 1)
    assert some.utility == pytest.approx(3 / 7)
    assert some.harm == pytest.approx(1 / 16)  # Beta(1, 4) above one half: (1 / 2)^4
    assert of(hurt=5).harm == pytest.approx(1 - 1 / 64)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_harm_and_deviation_by_another_way(helped: int, same: int, hurt: int) -> None:
    """With whole numbers the Beta tail is a binomial one, and the second moment of h - x is a sum of moments."""
    found = of(helped, same, hurt)
    h, x, total = helped + 1, hurt + 1, helped + same + hurt + 3
    n = h + x - 1
    assert found.harm == pytest.approx(sum(math.comb(n, k) for k in range(h, n + 1)) / 2**n, rel=1e-9)
    second = (h * (h + 1) + x * (x + 1) - 2 * h * x) / (total * (total + 1))
    assert found.deviation == pytest.approx(math.sqrt(second - found.utility**2), rel=1e-6)


def test_draws_have_that_mean_and_deviation() -> None:
    found, generator = of(helped=6, same=3, hurt=2), np.random.default_rng(0)
    draws = [found.drawn(generator) for _ in range(4000)]
    assert np.mean(draws) == pytest.approx(found.utility, abs=0.02)
    assert np.std(draws) == pytest.approx(found.deviation, abs=0.02)


@given(EVIDENCE, WEIGHTS)
def test_a_posterior_stays_one(evidence: Evidence, weights: Weights) -> None:
    found = posterior(evidence, weights)
    assert -1 < found.utility < 1
    assert 0 <= found.harm <= 1
    assert 0 < found.deviation <= 1
    assert min(found.helped, found.same, found.hurt) >= weights.prior
    told = found.helped + found.same + found.hurt - 3 * weights.prior
    assert -1e-6 <= told <= found.uses + 1e-6, "no use counts for more than one"


@given(EVIDENCE, EVIDENCE)
def test_it_does_not_matter_what_came_first(one: Evidence, other: Evidence) -> None:
    """Evidence adds up, so that what is taken back leaves no trace."""
    weights = Weights()
    together = {kind: one.get(kind, 0) + other.get(kind, 0) for kind in {*one, *other}}
    first, second, both = (posterior(evidence, weights) for evidence in (one, other, together))
    for name in ("helped", "same", "hurt"):
        assert getattr(both, name) == pytest.approx(getattr(first, name) + getattr(second, name) - weights.prior)
    assert both.uses == first.uses + second.uses


@given(EVIDENCE)
def test_one_more_harm_is_worse_and_one_more_help_is_better(evidence: Evidence) -> None:
    def after(outcome: UseOutcome) -> Posterior:
        kind = (Route.MEMORY, outcome, None)
        return posterior({**evidence, kind: evidence.get(kind, 0) + 1}, Weights())

    before, worse, better = posterior(evidence, Weights()), after(UseOutcome.BROKEN), after(UseOutcome.FIXED)
    assert worse.utility < before.utility < better.utility
    assert worse.harm >= before.harm >= better.harm


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_help_and_harm_mirror_each_other(helped: int, same: int, hurt: int) -> None:
    one, other = of(helped, same, hurt), of(hurt, same, helped)
    assert one.utility == pytest.approx(-other.utility)
    assert one.harm == pytest.approx(1 - other.harm, abs=1e-9)
    assert one.deviation == pytest.approx(other.deviation)


def test_the_rule_needs_uses_and_probability() -> None:
    rule = HarmRule(probability=0.95, uses=5, weights=Weights())
    assert rule.broken_by(of(hurt=4)) is None  # 31 / 32, but too few
    assert rule.broken_by(of(hurt=3, helped=2)) is None
    assert rule.broken_by(of(hurt=5, same=2)) == (
        "harmful with probability 0.9844, at least 0.95: helped 0, no difference 2, hurt 5 in 7 uses"
    )
