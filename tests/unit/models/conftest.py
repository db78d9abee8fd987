"""Tiny networks of several architectures, in float64 so that batching cannot change an argmax."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from elm_agent.models.loading import load_pretrained
from elm_agent.models.network import Network
from elm_agent.testing.tiny import write_tiny_model


@pytest.fixture(scope="session")
def tiny_network(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Network]:
    made: dict[str, Network] = {}

    def make(architecture: str) -> Network:
        if architecture not in made:
            folder = write_tiny_model(tmp_path_factory.mktemp(architecture), architecture=architecture)
            made[architecture] = Network(
                load_pretrained(str(folder), device="cpu", dtype="float64", offline=True).model
            )
        return made[architecture]

    return make
