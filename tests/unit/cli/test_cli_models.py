"""``models``: what comes by name, what is here, and what cannot be fetched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_calls import Elm, assert_one_sentence, error_of

from elm_agent.models import pull
from elm_agent.models.registry import EMBEDDED


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ELM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("ELM_OFFLINE", "true")
    return tmp_path / "cache"


def test_list(elm: Elm, cache: Path) -> None:
    told = json.loads(elm("models", "list", "--json").stdout)
    assert told["cache"] == str(cache)
    [model] = [item for item in told["models"] if item["default"]]
    assert (model["name"], model["here"], model["megabytes"]) == ("smollm2-135m", False, 93)
    (cache / "models" / EMBEDDED["smollm2-135m"].folder).mkdir(parents=True)
    assert "smollm2-135m  yes" in elm("models", "list").stdout


def test_pull_of_what_is_here(elm: Elm, cache: Path) -> None:
    folder = cache / "models" / EMBEDDED["smollm2-135m"].folder
    folder.mkdir(parents=True)
    result = elm("models", "pull", "--json")
    assert json.loads(result.stdout) == {"name": "smollm2-135m", "folder": str(folder)}


def test_pull_without_a_network(elm: Elm, cache: Path) -> None:
    assert cache
    assert_one_sentence(elm("models", "pull"), 5, "`offline` is on")
    assert error_of(elm("models", "pull", "--json"))["type"] == "ModelUnavailable"


def test_pull_of_an_unknown_name(elm: Elm, cache: Path) -> None:
    assert cache
    assert_one_sentence(
        elm("models", "pull", "gpt-17"), 5, "unknown embedded model 'gpt-17': expected one of smollm2"
    )


def test_progress_goes_to_standard_error(elm: Elm, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str, *, progress: object, **_: object) -> Path:
        assert callable(progress)
        progress(1, 2)
        progress(2, 2)
        return cache / name

    monkeypatch.setattr(pull, "pull", fetch)
    result = elm("models", "pull", "smollm2-135m")
    assert result.stdout == f"smollm2-135m is ready in {cache}/smollm2-135m\n"
