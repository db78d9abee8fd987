"""docs/lifecycle.md: its settings of maintenance are the settings."""

from __future__ import annotations

import re
from pathlib import Path

from elm_agent.settings import MaintenanceSettings

PAGE = (Path(__file__).parents[2] / "docs" / "lifecycle.md").read_text("utf-8")


def test_its_settings_are_the_settings() -> None:
    (table,) = re.findall(r"setting of `\[maintenance\]`.*?\n\n", PAGE, re.DOTALL)
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \| .*\|$", table, re.MULTILINE))
    assert told == {name: str(value) for name, value in MaintenanceSettings().model_dump().items()}
