"""The shipped profiles are settings files, and the shipped alembic.ini finds the migrations."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from elm_agent.settings import load_settings
from elm_agent.storage.sql.schema import HEAD

STORAGE = Path(__file__).parents[3] / "storage"


@pytest.mark.parametrize("path", sorted((STORAGE / "profiles").glob("*.toml")), ids=lambda path: path.stem)
def test_a_profile_loads(path: Path) -> None:
    assert load_settings(path).namespace == "default"


def test_alembic_ini_finds_the_migrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(STORAGE.parent)
    assert ScriptDirectory.from_config(Config(STORAGE / "alembic.ini")).get_heads() == [HEAD]
