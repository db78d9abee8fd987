"""The published reports hold the figures of the published runs: neither is changed without the other."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elm_agent.bench.evidence import paired
from elm_agent.bench.evidence.folder import read_run
from elm_agent.bench.evidence.report import build, document

RESULTS = Path(__file__).parents[3] / "docs" / "results"


@pytest.fixture(autouse=True)
def _no_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "_bootstrap", lambda *_: (math.nan, math.nan))  # counts need none


def counts(found: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    """Right, judged, fixed and broken of each method and seed."""
    for task in found["tasks"]:
        for method in task["methods"]:
            for one in (method, *method["seeds"]):
                versus = one["versus"] or {"fixed": None, "broken": None}
                name = task["task"], method["method"], one.get("seed"), one["failures"]
                yield *name, one["accuracy"]["part"], one["accuracy"]["whole"], versus["fixed"], versus["broken"]


def banks(found: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    """The same of each memory offline."""
    for one in found["offline"]:
        for memory in one["memories"]:
            name = one["task"], one["method"], memory["seed"], memory["learner"]
            yield *name, memory["accuracy"]["part"], memory["accuracy"]["whole"], memory["fixed"], memory["broken"]


@pytest.mark.parametrize("name", ["online-arithmetic", "offline-arithmetic"])
def test_a_published_report_is_that_of_its_run(name: str) -> None:
    there = json.loads((RESULTS / name / "report.json").read_text("utf-8"))
    here = json.loads(json.dumps(document(build(read_run(RESULTS / name / "run")))))
    assert there["run"] == here["run"]
    assert there["unfinished"] == here["unfinished"]
    assert list(counts(there)) == list(counts(here)) != []
    assert sorted(banks(there), key=str) == sorted(banks(here), key=str)
