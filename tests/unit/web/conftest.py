"""A bank for each test, in a temporary folder or on PostgreSQL, and the page over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from page_helpers import Browser, fill

from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors


@pytest.fixture
def bank(database_url: str, tmp_path: Path) -> Iterator[Bank]:
    made = Bank(Database.open(database_url), LocalTensors(tmp_path / "tensors"), index="exact")
    yield made
    made.close()


@pytest.fixture
def local_bank(tmp_path: Path) -> Iterator[Bank]:
    """On SQLite only: for what no database has a part in."""
    made = Bank(
        Database.open(f"sqlite:///{tmp_path / 'bank.sqlite'}"), LocalTensors(tmp_path / "tensors"), index="exact"
    )
    yield made
    made.close()


@pytest.fixture
def memory_ids(local_bank: Bank) -> list[str]:
    return fill(local_bank, "default", 12, at_once=True)


@pytest.fixture
def browser(local_bank: Bank) -> Browser:
    return Browser(local_bank)
