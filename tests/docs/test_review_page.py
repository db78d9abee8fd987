"""docs/review.md: its settings are the settings."""

from __future__ import annotations

import re
from pathlib import Path

from elm_agent.settings import ReviewSettings

PAGE = (Path(__file__).parents[2] / "docs" / "review.md").read_text("utf-8")


def test_its_settings_are_the_settings() -> None:
    (table,) = re.findall(r"setting of `\[review\]`.*?\n\n", PAGE, re.DOTALL)
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \| .*\|$", table, re.MULTILINE))
    assert {name: value.strip("`") for name, value in told.items()} == {
        name: str(value) for name, value in ReviewSettings().model_dump().items()
    }
