"""docs/review.md: its code runs, and its settings are the settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from elm_agent.settings import ReviewSettings

PAGE = (Path(__file__).parents[2] / "docs" / "review.md").read_text("utf-8")


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELM_INDEX", "exact")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/review.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == [
        "candidate awaits review",
        "42 or 41",
        "memory 42 a person chose the memory's answer",
        "deferred 41",
        "wrong 42 helped",
    ]


def test_its_settings_are_the_settings() -> None:
    (table,) = re.findall(r"setting of `\[review\]`.*?\n\n", PAGE, re.DOTALL)
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \| .*\|$", table, re.MULTILINE))
    assert {name: value.strip("`") for name, value in told.items()} == {
        name: str(value) for name, value in ReviewSettings().model_dump().items()
    }
