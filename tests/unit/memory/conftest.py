"""A real bank on SQLite with one namespace for the fake model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from elm_agent.memory.worker import Worker
from elm_agent.records import JobRecord, Recipe
from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.testing.doubles import FakeTrainer, fake_fingerprint

MODEL = fake_fingerprint()


@pytest.fixture
def bank(tmp_path: Path, sqlite_schema: Path) -> Iterator[Bank]:
    shutil.copyfile(sqlite_schema, tmp_path / "bank.sqlite")
    bank = Bank(Database.open(f"sqlite:///{tmp_path / 'bank.sqlite'}"), LocalTensors(tmp_path / "tensors"))
    bank.bind("ns", MODEL)
    yield bank
    bank.close()


@pytest.fixture
def enqueue(bank: Bank) -> Callable[..., JobRecord]:
    def enqueue_(question: str = "What is 7 times 8?", *, recipe: Recipe | None = None, **more: Any) -> JobRecord:
        values = {"task": "math", "model_id": MODEL.id, "recipe": recipe or Recipe(steps=2)} | more
        return bank.jobs.enqueue("ns", question, **values)[0]

    return enqueue_


@pytest.fixture
def make_worker(bank: Bank) -> Callable[..., Worker]:
    def make(trainer: FakeTrainer | None = None, **more: Any) -> Worker:
        chosen = trainer or FakeTrainer()
        values: dict[str, Any] = {"poll_seconds": 0.01, "backoff_seconds": 0.0} | more
        return Worker(bank=bank, trainer_for=lambda _task: chosen, model=MODEL, **values)

    return make
