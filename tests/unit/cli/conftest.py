"""The command line, run in this process and in an empty folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_calls import Elm
from typer.testing import CliRunner, Result


@pytest.fixture
def elm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elm:
    """``elm("memories", "list")`` runs the command in an empty folder; paths are relative to it."""
    from elm_agent.cli.app import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object, **more: Any) -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], prog_name="elm-agent", **more)

    return run
