"""docs/utility.md: its code runs, its settings are the settings, and its table of uses is the one that is counted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from elm_agent.settings import UtilitySettings

PAGE = (Path(__file__).parents[2] / "docs" / "utility.md").read_text("utf-8")


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELM_INDEX", "exact")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/utility.md", "exec"), {})
    first, route, report = capsys.readouterr().out.splitlines()
    assert first.startswith("mem_")
    assert route.startswith("memory the memory's answer was taken")
    assert report == "perhaps_hurt None active None"


def test_its_settings_are_the_settings() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \| .*\|$", PAGE.split("setting of `[utility]`")[1], re.MULTILINE))
    defaults = {name: getattr(UtilitySettings(), name) for name in UtilitySettings.model_fields}
    assert list(told) == list(defaults)
    for name, value in defaults.items():
        assert told[name].strip("`") == ("none" if value is None else str(value)), name
