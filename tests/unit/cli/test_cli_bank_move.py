"""``bank migrate``: two profiles, one bank."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_calls import Elm, assert_one_sentence, error_of
from postgres import fresh_database

from elm_agent.bench import filling
from elm_agent.settings import Settings


@pytest.fixture
def profiles(tmp_path: Path) -> tuple[Path, Path]:
    """A bank with three memories, and where it shall be."""
    from elm_agent.runtime import open_bank

    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    old.write_text(f'home = "{tmp_path / "old"}"\nindex = "exact"\n')
    new.write_text(f'home = "{tmp_path / "new"}"\nindex = "exact"\n')
    bank = open_bank(Settings(home=tmp_path / "old", index="exact"))
    bank.bind("default", filling.model_of(8))
    bank.adopt("default", filling.made_up(np.random.default_rng(0), 3, 8), actor="test")
    bank.close()
    return old, new


def test_a_bank_is_moved_and_the_old_place_says_so(elm: Elm, profiles: tuple[Path, Path]) -> None:
    old, new = profiles
    dry = elm("bank", "migrate", "--from", old, "--to", new, "--dry-run")
    assert "would move from sqlite:///" in dry.stdout
    assert "1 namespaces, 3 tensors; rows: 1 namespaces, 3 episodes, 3 events" in dry.stdout
    moved = elm("bank", "migrate", "--from", old, "--to", new)
    assert moved.exit_code == 0
    assert "everything was compared (sum-sha256:" in moved.stdout
    [memory, *_] = json.loads(elm("memories", "list", "--settings", new, "--json").stdout)
    assert elm("memories", "pin", memory["id"], "--settings", new).exit_code == 0
    assert_one_sentence(elm("memories", "pin", memory["id"], "--settings", old), 4, "was moved to sqlite:///")
    assert elm("memories", "list", "--settings", old).exit_code == 0, "it can still be read"
    again = elm("bank", "migrate", "--from", old, "--to", new)
    assert "there was nothing left to do" in again.stdout


@pytest.mark.postgres
def test_to_a_server_and_back(elm: Elm, profiles: tuple[Path, Path], postgres_server: str, tmp_path: Path) -> None:
    from elm_agent.runtime import open_bank
    from elm_agent.settings import load_settings

    old, there = profiles[0], tmp_path / "there.toml"
    with fresh_database(postgres_server) as url:
        there.write_text(f'home = "{tmp_path / "there"}"\nindex = "exact"\ndatabase_url = "{url}"\n')
        moved = elm("bank", "migrate", "--from", old, "--to", there)
        assert moved.exit_code == 0, moved.output
        assert "everything was compared (sum-sha256:" in moved.stdout
        memories = json.loads(elm("memories", "list", "--settings", there, "--json").stdout)
        assert len(memories) == 3
        assert_one_sentence(elm("memories", "pin", memories[0]["id"], "--settings", old), 4, "was moved to postgres")
        assert elm("memories", "pin", memories[0]["id"], "--settings", there).exit_code == 0
        bank = open_bank(load_settings(there))
        assert [bank.prompt("default", memory["id"]).width for memory in memories] == [8] * 3
        bank.close()
        assert json.loads(elm("doctor", "--settings", there, "--json").stdout)["findings"] == []
        assert elm("bank", "migrate", "--from", there, "--to", old).exit_code == 0
        back = json.loads(elm("memories", "list", "--settings", old, "--json").stdout)
        assert [memory["id"] for memory in back if memory["pinned"]] == [memories[0]["id"]]


def test_json_carries_the_whole_report(elm: Elm, profiles: tuple[Path, Path]) -> None:
    report = json.loads(elm("bank", "migrate", "--from", profiles[0], "--to", profiles[1], "--keep", "--json").stdout)
    assert (report["moved"], report["tensors"], report["rows"]["memories"]) == (False, 3, 3)


def test_what_cannot_be_moved_is_one_sentence(
    elm: Elm, profiles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = profiles
    assert_one_sentence(elm("bank", "migrate", "--from", old, "--to", old), 2, "the same database")
    assert_one_sentence(elm("bank", "migrate", "--from", new, "--to", old), 3, "there is no bank")
    assert_one_sentence(elm("bank", "migrate", "--from", old, "--to", tmp_path / "none.toml"), 2, "does not exist")
    away = tmp_path / "away.toml"
    away.write_text('database_url = "postgresql://elm@127.0.0.1:1/elm"\nindex = "exact"\n')
    assert_one_sentence(elm("bank", "migrate", "--from", old, "--to", away), 4, "cannot be reached")
    called = elm("bank", "migrate", "--from", old, "--to", new, "--home", tmp_path)
    assert_one_sentence(called, 2, "--home says nothing here")
    monkeypatch.setenv("ELM_DATABASE_URL", "sqlite:///x")
    assert (
        "would win over both profiles"
        in error_of(elm("bank", "migrate", "--from", old, "--to", new, "--json"))["message"]
    )
