"""The compose file says what the profile and its own comment need; no container is started."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from sqlalchemy import make_url

COMPOSE = Path(__file__).parents[2] / "storage" / "compose.yaml"


@pytest.fixture
def text() -> str:
    return COMPOSE.read_text("utf-8")


def test_the_server_is_the_one_its_url_names(text: str) -> None:
    postgres = yaml.safe_load(text)["services"]["postgres"]
    found = re.search(r"ELM_DATABASE_URL=(\S+)", text)
    assert found is not None
    url = make_url(found[1])
    environment = postgres["environment"]
    assert (url.username, url.database) == (environment["POSTGRES_USER"], environment["POSTGRES_DB"])
    assert environment["POSTGRES_PASSWORD"] == f"${{ELM_POSTGRES_PASSWORD:-{url.password}}}"
    assert postgres["ports"] == [f"{url.host}:{url.port}:5432"], "reachable from this machine only"


def test_the_version_is_the_one_we_test_with(text: str) -> None:
    image = yaml.safe_load(text)["services"]["postgres"]["image"]
    version = image.removeprefix("postgres:")
    assert f"It is tested with version {version}" in (COMPOSE.parent / "README.md").read_text("utf-8")
