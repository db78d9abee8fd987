"""Coordinates worked out by hand."""

from __future__ import annotations

import math

import pytest

from elm_agent.web import charts


def test_lines_run_from_edge_to_edge() -> None:
    drawn = charts.lines({"votes": [0.0, 0.5, 1.0]}, labels=["a", "b", "c"])
    [line] = drawn.lines
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    top, bottom = charts.TOP, charts.HEIGHT - charts.BOTTOM
    assert [dot[:2] for dot in line.dots] == [(left, bottom), ((left + right) / 2, (top + bottom) / 2), (right, top)]
    assert line.parts == (" ".join(f"{x},{y}" for x, y, _ in line.dots),)
    assert line.dots[1][2] == "b: votes 50.0%"
    assert drawn.ends == ("a", "c")


def test_a_missing_value_parts_a_line_and_a_wild_one_stays_inside() -> None:
    [line] = charts.lines({"x": [0.1, None, math.nan, 7.0, -3.0]}, labels=list("abcde")).lines
    assert [len(part.split()) for part in line.parts] == [1, 2]
    assert {y for _, y, _ in line.dots[1:]} == {charts.TOP, charts.HEIGHT - charts.BOTTOM}


def test_one_value_stands_in_the_middle() -> None:
    [line] = charts.lines({"x": [0.5]}, labels=["a"]).lines
    assert line.dots[0][0] == pytest.approx((charts.LEFT + charts.WIDTH - charts.RIGHT) / 2)


def test_bands_are_as_high_as_what_goes_through_them() -> None:
    counts = {("a", "x"): 30, ("a", "y"): 10, ("b", "y"): 60}
    drawn = charts.flow(counts, left=["a", "b", "none"], right=["x", "y"])
    assert [(bar.name, bar.count) for bar in drawn.left] == [("a", 40), ("b", 60)]
    assert [(bar.name, bar.count) for bar in drawn.right] == [("x", 30), ("y", 70)]
    heights = {bar.name: bar.height for bar in (*drawn.left, *drawn.right)}
    assert heights["a"] / heights["b"] == pytest.approx(40 / 60, rel=0.01)
    assert [band.title for band in drawn.bands] == ["a to x: 30 (30.0%)", "a to y: 10 (10.0%)", "b to y: 60 (60.0%)"]
    for bar in (*drawn.left, *drawn.right):
        assert 0 <= bar.y <= bar.y + bar.height <= drawn.height


def test_an_empty_flow_has_nothing_to_draw() -> None:
    drawn = charts.flow({}, left=["a"], right=["x"])
    assert (drawn.left, drawn.right, drawn.bands) == ((), (), ())


def test_points_keep_their_distances() -> None:
    placed = charts.points([(0.0, 0.0), (1.0, 0.0), (0.0, 3.0)], width=200, height=100, margin=10)
    (ax, ay), (bx, by), (cx, cy) = placed
    assert (bx - ax, by - ay) == (pytest.approx(80 / 3, abs=0.1), 0)
    assert (cx - ax, cy - ay) == (0, pytest.approx(-80, abs=0.1))  # up is less y
    assert all(0 <= x <= 200 and 0 <= y <= 100 for x, y in placed)
    assert charts.points([(5.0, 5.0), (5.0, 5.0)], width=200, height=100) == [(100, 50), (100, 50)]
    assert charts.points([]) == []
