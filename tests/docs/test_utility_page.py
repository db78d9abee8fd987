"""docs/utility.md: its settings are the settings."""

from __future__ import annotations

import re
from pathlib import Path

from elm_agent.settings import UtilitySettings

PAGE = (Path(__file__).parents[2] / "docs" / "utility.md").read_text("utf-8")


def test_its_settings_are_the_settings() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \| .*\|$", PAGE.split("setting of `[utility]`")[1], re.MULTILINE))
    defaults = {name: getattr(UtilitySettings(), name) for name in UtilitySettings.model_fields}
    assert list(told) == list(defaults)
    for name, value in defaults.items():
        assert told[name].strip("`") == ("none" if value is None else str(value)), name
