"""The measurement of approximate rollouts, on a tiny model."""

from __future__ import annotations

from pathlib import Path

from elm_agent.bench.rollouts import WAYS, measure, table
from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.records import Recipe
from elm_agent.testing.tiny import write_tiny_model


def test_each_way_has_a_row_and_only_what_is_rounded_has_ratios(tmp_path: Path) -> None:
    loaded = load_pretrained(str(write_tiny_model(tmp_path / "m")), device="cpu", dtype="float32", offline=True)
    model = LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint)
    recipe = Recipe(rollouts=4, steps=2, max_new_tokens=4, virtual_tokens=3, beta=0.1)
    rows = measure(model, "What is 2 plus 3?", recipe, repeat=1)
    model.close()
    assert [row["way"] for row in rows] == list(WAYS)
    assert [row["ratio_max"] is None for row in rows] == [True, True, False, False, False]
    assert rows[0]["same_texts"] is True
    assert all(row["ms_per_token"] > 0 for row in rows)
    assert len(table(rows).splitlines()) == 2 + len(WAYS)
