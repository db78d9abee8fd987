"""What the plots of a report show, against numbers worked by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from evidence_runs import answer, learn

from elm_agent.bench.evidence.contract import GenerationLine
from elm_agent.bench.evidence.report_series import reward_curves, stream_curves


def trained(number: int, shares: Sequence[float]) -> GenerationLine:
    return learn("elm_input", number, curve=tuple({"vote_share": share} for share in shares))


def test_a_memory_that_stopped_early_keeps_its_last_value() -> None:
    curves = reward_curves(
        [
            trained(0, [0.5, 1.0]),
            trained(1, [0.5, 0.5, 0.75, 0.75]),
            trained(2, [0.25, 0.5, 0.5, 1.0]),
            trained(3, []),
        ]
    )
    band = curves["elm_input"]
    assert band.members == 3
    assert band.x == (1, 2, 3, 4)
    assert band.middle == (0.5, 0.5, 0.75, 1.0)  # without the settled one: 0.625 and 0.875 in the end
    assert band.low == pytest.approx((0.375, 0.5, 0.625, 0.875))
    assert band.high == pytest.approx((0.5, 0.75, 0.875, 1.0))


def test_an_unfinished_seed_does_not_bend_the_curve() -> None:
    lines = [answer("icl", n, n > 1) for n in range(4)] + [answer("icl", 0, True, seed=1)]
    assert stream_curves(lines)["icl"].middle == (0.5, 0.0, 1 / 3, 0.5)
    whole = stream_curves(lines, {("icl", 1)})["icl"]
    assert (whole.middle, whole.members) == ((0.0, 0.0, 1 / 3, 0.5), 1)
    both = stream_curves(lines, {("icl", 0), ("icl", 1)})["icl"]
    assert both.members == 2, "a run that goes on is shown as far as it came"
