"""The command line, run in this process and in an empty folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Elm
from fake_elm import open_fake_runtime
from typer.testing import CliRunner, Result

import elm_agent.runtime
from elm_agent.settings import Settings
from elm_agent.storage.bank import Bank


@pytest.fixture
def elm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elm:
    """``elm("memories", "list")`` runs the command in an empty folder; paths are relative to it."""
    from elm_agent.cli.app import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object, **more: Any) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="elm-agent", **more)

    return run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands get a model and a trainer that only pretend, and look after their jobs often."""
    monkeypatch.setattr(elm_agent.runtime, "open_runtime", open_fake_runtime)
    monkeypatch.setenv("ELM_TASK", "number")
    monkeypatch.setenv("ELM_INDEX", "exact")
    for name, seconds in {"POLL": 0.01, "LEASE": 2, "HEARTBEAT": 0.2}.items():
        monkeypatch.setenv(f"ELM_WORKER__{name}_SECONDS", str(seconds))


@pytest.fixture
def bank(elm: Elm, tmp_path: Path) -> Iterator[Bank]:
    """In ./.elm, with one memory of ``fake`` parts: answers with it are right, those without are one too much."""
    assert elm("ask", "What is 9 times 9?", "--wait").exit_code == 0
    opened = elm_agent.runtime.open_bank(Settings(home=tmp_path / ".elm"))
    yield opened
    opened.close()
