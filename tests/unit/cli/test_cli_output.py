"""What is shown: JSON that any parser reads, text that cannot move a cursor."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elm_agent.cli.output import clean, plain, short, sparkline, to_json
from elm_agent.records import Hit, Route, Verdict


def test_records_become_plain_values() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    value = {"hits": (Hit("mem_1", 0.5),), "route": Route.MEMORY, "when": moment, "where": Path("a/b"), 7: None}
    assert plain(value) == {
        "hits": [{"memory_id": "mem_1", "similarity": 0.5, "namespace": ""}],
        "route": "memory",
        "when": "2026-01-02T03:04:05+00:00",
        "where": "a/b",
        "7": None,
    }
    assert type(plain(Route.MEMORY)) is str


def test_what_is_not_finite_is_null() -> None:
    verdict = Verdict(math.nan, {"low": -math.inf})
    assert json.loads(to_json(verdict)) == {"score": None, "detail": {"low": None}}


def test_unknown_types_are_refused() -> None:
    with pytest.raises(TypeError, match="no JSON form for object"):
        plain(object())


@given(st.text())
def test_clean_text_cannot_move_the_cursor(text: str) -> None:
    assert all(letter.isprintable() or letter == "\n" for letter in clean(text))
    assert len(short(text, 10)) <= 10
    assert "\n" not in short(text)


def test_nothing_is_a_dash() -> None:
    assert clean(None) == "-"
    assert clean("tab\there \x1b[31m") == "tab here \ufffd[31m"


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([0.0, 0.5, 1.0], "▁▅█"),
        ([0.25], "▃"),
        ([-1.0, 2.0, math.nan], "▁█?"),
        ([], ""),
        ([math.nan, math.inf], "??"),
    ],
)
def test_sparklines_between_nought_and_one(values: list[float], bars: str) -> None:
    assert sparkline(values, low=0, high=1) == bars


def test_a_sparkline_of_equal_values_is_flat() -> None:
    assert sparkline([3.0, 3.0]) == "▅▅"
    assert sparkline([1.0, 2.0, 8.0]) == "▁▂█"
