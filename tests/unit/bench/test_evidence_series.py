"""What the plots of a report show, against numbers worked by hand."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import pytest
from evidence_runs import answer, learn

from elm_agent.bench.evidence.contract import GenerationLine
from elm_agent.bench.evidence.report_pictures import folded, stream, svg
from elm_agent.bench.evidence.report_series import Band, reward_curves, stream_curves


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


def test_long_names_leave_room_for_what_is_drawn() -> None:
    name = "elm_input:steps=1+rollouts=2+learning_rate=1e-12+example from arithmetic"
    assert folded(name) == "elm_input:steps=1+rollouts=2+\nlearning_rate=1e-12+example\nfrom arithmetic"
    assert folded("zero_shot") == "zero_shot"
    curves = {
        f"{name} {n}": Band(x=(1, 2), middle=(0.1, 0.2), low=(0, 0.1), high=(0.2, 0.3), members=2) for n in range(7)
    }
    colours = dict.fromkeys(curves, "#000000")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of axes without room
        drawn = svg(stream(curves, colours), name="plot", text="seven")
        short = svg(stream({"a": curves[f"{name} 0"]}, {"a": "#000000"}), name="plot", text="one")
    tall, low = (float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', one)[1]) for one in (drawn, short))  # type: ignore[index]
    assert tall == pytest.approx(low + 6 * 0.19 * 72, abs=1)
