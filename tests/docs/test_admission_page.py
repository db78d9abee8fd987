"""docs/admission.md: its code runs, and its settings are the settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from elm_agent.settings import AbstentionSettings, AdmissionSettings, BudgetSettings

PAGE = (Path(__file__).parents[2] / "docs" / "admission.md").read_text("utf-8")


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELM_INDEX", "exact")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/admission.md", "exec"), {})
    admitted, calibrated, route, uses = capsys.readouterr().out.splitlines()
    assert admitted.startswith("active ")
    assert calibrated.startswith("calibrated on 12 uses, helped 12, hurt 0: ")
    assert route.startswith("memory_alone the memory is proven: utility 0.8")
    assert uses == "12"


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
