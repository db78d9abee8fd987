"""The measurement of approximate rollouts, on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from elm_agent.bench.rollouts import COLUMNS, WAYS, Runs, findings, measure, rows
from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.records import Recipe
from elm_agent.testing.tiny import write_tiny_model

RECIPE = Recipe(rollouts=4, steps=2, max_new_tokens=4, virtual_tokens=3, beta=0.1)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[LocalModel]:
    loaded = load_pretrained(str(write_tiny_model(tmp_path / "m")), device="cpu", dtype="float32", offline=True)
    model = LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint)
    yield model
    model.close()


def test_each_way_has_a_row_and_only_what_is_rounded_has_ratios(model: LocalModel) -> None:
    runs: Runs = {}
    told: list[str] = []
    measure(model, "What is 2 plus 3?", RECIPE, 1, runs, told.append)
    found = findings(runs)
    assert told == [*WAYS, *WAYS]
    assert [one["way"] for one in found] == list(WAYS)
    assert [one["ratio_max"] is None for one in found] == [True, True, False, False, False]
    assert found[0]["same_texts"] is True
    assert all(one["ms_per_token"] > 0 for one in found)
    assert [len(row) for row in rows(found)] == [len(COLUMNS)] * len(WAYS)
    assert rows(found)[0][2] == "1.00"


def test_stopped_in_the_middle_it_tells_the_ways_that_were_measured(model: LocalModel) -> None:
    runs: Runs = {}
    turns = len(WAYS) + 2

    def stop(_way: str) -> None:
        if sum(map(len, runs.values())) == turns:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, "What is 2 plus 3?", RECIPE, 3, runs, stop)
    assert [(one["way"], one["runs"]) for one in findings(runs)] == [("exact", 1), ("drafts", 1)]
    assert findings({"exact": runs["exact"][:1]}) == []
