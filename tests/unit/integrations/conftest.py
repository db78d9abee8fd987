"""Runtimes for the bindings: a real bank and a real engine, whose tokens are written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from written_models import Script, obliging, written_model

from elm_agent import Runtime, open_runtime
from elm_agent.testing.doubles import FakeTrainer, FixedVerifier
from elm_agent.testing.tiny import CHATML_TOOLS

Open = Callable[..., Runtime]


@pytest.fixture(scope="session")
def written_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("written")


@pytest.fixture
def opened(tmp_path: Path, written_folder: Path) -> Iterator[Open]:
    """Opens runtimes on one bank; closes them."""
    runtimes: list[Runtime] = []

    def open_(
        *, script: Script = obliging, verifier: Any = None, template: str = CHATML_TOOLS, **settings: Any
    ) -> Runtime:
        folder = written_folder / str(abs(hash(template)))
        settings = {
            "home": tmp_path,
            "worker": {"mode": "inline"},
            "index": "exact",
            "max_new_tokens": 200,
        } | settings
        model = written_model(folder, script, chat_template=template)
        runtime = open_runtime(model=model, trainer=FakeTrainer(), verifier=verifier or FixedVerifier(), **settings)
        runtimes.append(runtime)
        return runtime

    yield open_
    for runtime in runtimes:
        runtime.model.close()
        runtime.close()


@pytest.fixture
def learn() -> Callable[..., str]:
    """Puts a memory of a question into the bank; returns its id."""

    def learn_(runtime: Runtime, question: str, namespace: str = "default") -> str:
        runtime.bind(namespace)
        runtime.bank.jobs.enqueue(
            namespace,
            question,
            task=runtime.task.name,
            model_id=runtime.model.fingerprint.id,
            recipe=runtime.recipe,
        )
        assert runtime.worker().run(once=True) == 1
        return runtime.bank.memories(namespace, limit=1)[0].id

    return learn_
