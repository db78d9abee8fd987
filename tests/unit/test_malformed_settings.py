"""Settings and names that no file, URL, database or terminal can carry are refused in one short sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from elm_agent.errors import ElmError, SettingsError
from elm_agent.runtime import open_bank
from elm_agent.settings import Settings, load_settings

NAMES = ("", "a/b", "../x", "/etc", "..", "a\0b", "x" * 10_000, "\u202eabc", "\ud800", "a b", "é", "\n", "-x", "😀")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["namespace", "shared_namespaces"])
def test_namespaces(field: str, name: str) -> None:
    value: Any = (name,) if field == "shared_namespaces" else name
    with pytest.raises(SettingsError, match="namespace") as caught:
        Settings(**{field: value})
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("text", ["a\0b", "x" * 10_000, "\u202eabc", "\ud800", "\x1b[2J"])
@pytest.mark.parametrize("field", ["home", "model", "gguf_file", "cache_dir", "database_url", "tensors", "index"])
def test_texts_and_paths(field: str, text: str) -> None:
    with pytest.raises(SettingsError, match=field) as caught:
        Settings(**{field: text})
    assert len(str(caught.value)) < 800


def test_sections_too() -> None:
    for section in ({"encryption": {"key_file": "a\0b"}}, {"eviction": {"where": "x" * 10_000}}):
        with pytest.raises(SettingsError):
            Settings(**section)
    assert Settings(eviction={"where": "uses > 1\nand not pinned"}).eviction.where


@pytest.mark.parametrize(
    ("field", "url"),
    [
        ("database_url", "nonsense"),
        ("database_url", "://"),
        ("database_url", "mysql://u:p@h/db"),
        ("database_url", "postgresql://h:notaport/x"),
        ("database_url", "http://[::1"),
        ("database_url", "sqlite+pysqlcipher:///x"),
        ("database_url", "sqlite:///:memory:"),
        ("database_url", "sqlite:///" + "x" * 1_000),
        ("tensors", "s3://"),
        ("tensors", "nosuch://x"),
    ],
)
def test_urls_are_refused_when_a_bank_is_opened(tmp_path: Path, field: str, url: str) -> None:
    settings = Settings(home=tmp_path, index="exact", **{field: url})
    with pytest.raises(ElmError) as caught:
        open_bank(settings).close()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2_000


@pytest.mark.parametrize(
    "text",
    [
        "nothing = 1",
        "[learning]\nnothing = 1",
        "[nothing]",
        "x" * 10_000 + " = 1",
        "namespace = 1",
        "a.b.c.d = 1",
        "a = [",
    ],
)
def test_profiles_with_unknown_keys(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert len(str(caught.value)) < 600
