"""An agent that answers at once on a real bank, and clients that ask it through the API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_calls import ACCESS, LONG, Open, Watched
from fastapi.testclient import TestClient

from elm_agent import Runtime, open_runtime
from elm_agent.api.http import make_app
from elm_agent.models.loading import load_pretrained
from elm_agent.testing.doubles import FakeModel, FakeTrainer
from elm_agent.testing.tiny import write_tiny_model


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


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_tiny_model(tmp_path_factory.mktemp("endless"), context_length=2 * LONG)
    return load_pretrained(str(folder), device="cpu", dtype="float32", offline=True)


@pytest.fixture
def agent(loaded: Any, tmp_path: Path) -> Iterator[Open]:
    opened: list[Runtime] = []

    def open_(tokens: int) -> Runtime:
        model = Watched(loaded.model, loaded.tokenizer, loaded.fingerprint, ignore_end=True)
        model.asked = []
        opened.append(
            open_runtime(
                model=model, trainer=FakeTrainer(), home=tmp_path, index="exact", learn=False, max_new_tokens=tokens,
                worker={"mode": "external"},
            )
        )  # fmt: skip
        return opened[-1]

    yield open_
    for runtime in opened:
        runtime.close()
        runtime.model.close()  # type: ignore[attr-defined]
