"""Tiny models of every family whose gradients are checked, in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from slow_reference import open_model

from elm_agent.models.engine import LocalModel


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gpt2"])
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    model = open_model(tmp_path_factory.mktemp("wide"), architecture=request.param, dtype="float64")
    yield model
    model.close()
