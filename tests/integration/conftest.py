"""Runtimes on a real bank (SQLite, files, exact index) whose parts answer and learn at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graph_calls import Open

from elm_agent import Runtime, open_runtime
from elm_agent.testing.doubles import FakeModel, FakeTrainer, FixedVerifier


@pytest.fixture
def usual() -> dict[str, Any]:
    """Settings of every runtime that ``opened`` opens; a file of tests may have its own."""
    return {}


@pytest.fixture
def opened(tmp_path: Path, usual: dict[str, Any]) -> Iterator[Open]:
    """Opens runtimes that answer 2 with a memory and 1 without, or as ``reply`` says; they are closed at the end."""
    runtimes: list[Runtime] = []

    def differing(_prompt: str, memory_id: str | None) -> str:
        return "\\boxed{2}" if memory_id else "\\boxed{1}"

    def open_(*, reply: Any = None, verifier: Any = None, trainer: Any = None, **settings: Any) -> Runtime:
        runtime = open_runtime(
            model=FakeModel(reply=reply or differing),
            trainer=trainer or FakeTrainer(),
            verifier=verifier or FixedVerifier(),
            **({"home": tmp_path, "worker": {"mode": "inline"}, "index": "exact"} | usual | settings),
        )
        runtimes.append(runtime)
        return runtime

    yield open_
    for runtime in runtimes:
        runtime.close()
