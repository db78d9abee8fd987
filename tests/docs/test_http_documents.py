"""docs/http.md and docs/observability.md: their tables are what is served and sent."""

from __future__ import annotations

import re
from pathlib import Path

from elm_agent import telemetry
from elm_agent.settings import TelemetrySettings

ROOT = Path(__file__).parents[2]
HTTP = (ROOT / "docs" / "http.md").read_text("utf-8")
OBSERVABILITY = (ROOT / "docs" / "observability.md").read_text("utf-8")


def test_every_call_of_the_api_is_in_the_table() -> None:
    told = set(re.findall(r"^\| `(GET|POST) (/\S+)` \|", HTTP, re.MULTILINE))
    source = (ROOT / "elm_agent" / "api" / "http.py").read_text("utf-8")
    routes = {
        (method.upper(), f"/v1{path}") for method, path in re.findall(r'_router\.(get|post)\(\s*"([^"]+)"', source)
    }
    assert told == routes | {("GET", "/health")}


def test_what_is_sent_is_in_the_tables() -> None:
    source = Path(telemetry.__file__).read_text("utf-8")
    spans = {"elm.answer", "elm.learn"} | {f"elm.{name}" for name in re.findall(r'_child\("(\w+)"', source)}
    metrics = set(re.findall(r'create_\w+\("(elm\.[\w.]+)"', source))
    told = re.findall(r"^\| `(elm\.[\w.]+)`", OBSERVABILITY, re.MULTILINE)
    assert set(told) == spans | metrics


def test_every_mode_of_telemetry_is_in_the_table() -> None:
    modes = set(TelemetrySettings.model_fields["mode"].annotation.__args__)  # type: ignore[union-attr]
    assert set(re.findall(r"^\| `(\w+)` \|", OBSERVABILITY, re.MULTILINE)) == modes
