"""Where the next worker on Ray goes, without a cluster."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'elm-agent[ray]'")

from elm_agent.executors.ray.placing import Strategy, Target, target

FIT = ["a", "b"]


@pytest.mark.parametrize(
    ("strategy", "taken", "expected"),
    [
        ("SPREAD", [], Target(spread=True)),
        ("SPREAD", ["a", "b", "a"], Target(spread=True)),
        ("PACK", [], Target()),
        ("PACK", ["b"], Target("b", soft=True)),
        ("PACK", ["gone", None], Target()),
        ("STRICT_SPREAD", [], Target("a")),
        ("STRICT_SPREAD", ["a"], Target("b")),
        ("STRICT_SPREAD", ["b", "a"], None),
        ("STRICT_SPREAD", [None], None),
        ("STRICT_PACK", [], Target()),
        ("STRICT_PACK", ["b"], Target("b")),
        ("STRICT_PACK", [None], None),
    ],
)
def test_the_next_place(strategy: Strategy, taken: Sequence[str | None], expected: Target | None) -> None:
    assert target(strategy, taken, FIT) == expected


def test_no_node_is_large_enough() -> None:
    assert target("STRICT_SPREAD", [], []) is None
