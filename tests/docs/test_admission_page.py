"""docs/admission.md: its settings are the settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from elm_agent.settings import AbstentionSettings, AdmissionSettings, BudgetSettings

PAGE = (Path(__file__).parents[2] / "docs" / "admission.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("section", "settings"),
    [("admission", AdmissionSettings()), ("abstention", AbstentionSettings()), ("budget", BudgetSettings())],
)
def test_its_settings_are_the_settings(section: str, settings: BaseModel) -> None:
    (table,) = re.findall(rf"setting of `\[{section}\]`.*?\n\n", PAGE + "\n\n", re.DOTALL)
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \| .*\|$", table, re.MULTILINE))
    defaults = settings.model_dump()
    assert list(told) == list(defaults)
    for name, value in defaults.items():
        assert told[name].strip("`") == ("none" if value is None else str(value)), name
