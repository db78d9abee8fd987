"""A tiny random model and short learning, so that documents and examples run in seconds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from elm_agent.testing.tiny import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("docs"))


@pytest.fixture
def short_environment(tiny_model: Path, tmp_path: Path) -> dict[str, str]:
    """Variables for a child process: everything the embedded defaults do, on a model of two small layers."""
    return os.environ | {
        "ELM_MODEL": str(tiny_model),
        "ELM_HOME": str(tmp_path / "home"),
        "ELM_MAX_NEW_TOKENS": "8",
        "ELM_LEARNING__STEPS": "2",
        "ELM_LEARNING__ROLLOUTS": "3",
        "ELM_LEARNING__MAX_NEW_TOKENS": "6",
        "ELM_OFFLINE": "true",
        "OMP_NUM_THREADS": "1",
    }
