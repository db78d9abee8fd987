"""A database and a bank, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bank_helpers import MODEL, Learn, learner

from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database.open(database_url, busy_seconds=20)
    yield database
    database.close()


@pytest.fixture
def bank(database: Database, tmp_path: Path) -> Iterator[Bank]:
    bank = Bank(database, LocalTensors(tmp_path / "tensors"), index="exact", shared=["default"])
    bank.bind("default", MODEL)
    yield bank
    bank.close()


@pytest.fixture
def learn(bank: Bank) -> Learn:
    return learner(bank)
