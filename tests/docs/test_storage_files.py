"""The compose file says what the profile and its own comment need; no container is started."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import s3
import yaml
from sqlalchemy import make_url

from elm_agent.protocols import TensorCapability
from elm_agent.runtime import open_tensors
from elm_agent.settings import load_settings
from elm_agent.storage.tensors.remote import FsspecTensors

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


def test_the_versions_are_those_we_test_with(text: str) -> None:
    services, readme = yaml.safe_load(text)["services"], (COMPOSE.parent / "README.md").read_text("utf-8")
    postgres = services["postgres"]["image"].removeprefix("pgvector/pgvector:pg")
    assert f"It is tested with version {postgres}" in readme
    assert f"It is tested with SeaweedFS {services['s3']['image'].rpartition(':')[2]}" in readme
    assert services["chroma"]["image"].rpartition(":")[2] == version("chromadb")


def test_the_profile_names_the_store_that_compose_starts(text: str) -> None:
    store = yaml.safe_load(text)["services"]["s3"]
    settings = load_settings(COMPOSE.parent / "profiles" / "server.toml")
    endpoint = urlsplit(settings.tensor_options["endpoint_url"])
    assert store["ports"] == [f"{endpoint.hostname}:{endpoint.port}:{endpoint.port}"], (
        "reachable from this machine only"
    )
    assert f"-s3.port={endpoint.port} " in store["command"]
    assert "telemetry=false" in store["command"]
    assert f"AWS_ACCESS_KEY_ID={store['environment']['AWS_ACCESS_KEY_ID']} " in text
    assert open_tensors(settings).capabilities >= {TensorCapability.REMOTE}


def test_every_service_is_reachable_from_this_machine_only(text: str) -> None:
    ports = [port for service in yaml.safe_load(text)["services"].values() for port in service["ports"]]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.s3
@pytest.mark.usefixtures("s3_server")  # skips where there is none
def test_the_command_of_compose_starts_a_store_that_makes_the_bucket(text: str) -> None:
    store = yaml.safe_load(text)["services"]["s3"]
    with s3.temporary_s3(store["command"].split()) as server:
        tensors = FsspecTensors("s3://elm/tensors", options={"endpoint_url": server.endpoint})
        assert tensors.get("default", tensors.put("default", b"weights")) == b"weights"
