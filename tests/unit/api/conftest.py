"""An agent that answers at once on a real bank, and clients that ask it through the API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_calls import ACCESS, Open
from fastapi.testclient import TestClient

from elm_agent import Runtime, open_runtime
from elm_agent.api.http import make_app
from elm_agent.testing.doubles import FakeModel, FakeTrainer


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    runtimes: list[Runtime] = []

    def open_(*, model: Any = None, trainer: Any = None, **settings: Any) -> Runtime:
        settings = {"home": tmp_path / "home", "worker": {"mode": "inline"}, "index": "exact"} | settings
        runtimes.append(open_runtime(model=model or FakeModel(), trainer=trainer or FakeTrainer(), **settings))
        return runtimes[-1]

    yield open_
    for runtime in runtimes:
        runtime.close()


@pytest.fixture
def runtime(opened: Open) -> Runtime:
    return opened()


@pytest.fixture
def client(runtime: Runtime) -> TestClient:
    """Asks without a token; a failure of the server is an answer, not an exception."""
    return TestClient(make_app(runtime), raise_server_exceptions=False)


@pytest.fixture
def guarded(runtime: Runtime) -> TestClient:
    return TestClient(make_app(runtime, access=ACCESS), raise_server_exceptions=False)
