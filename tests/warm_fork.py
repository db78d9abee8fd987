"""Imported by the server that forks test processes: a small bank lives and ends, and what that needs is there.

Without it each child imports SQLAlchemy, alembic and torch anew and builds every mapping: seconds of a processor.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import chromadb  # noqa: F401 - imported for the children
import psycopg  # noqa: F401
import s3fs  # noqa: F401
import torch

import elm_agent.bench.filling
import elm_agent.runtime
import elm_agent.storage.ledger.checkpoints
import elm_agent.storage.moving.move
import elm_agent.storage.packs.transfer
import elm_agent.storage.vault.rotation  # noqa: F401
from elm_agent.memory.worker import Worker
from elm_agent.records import KeyKind, Recipe
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.testing.doubles import FakeTrainer, fake_fingerprint, key_of


def live() -> None:
    model = fake_fingerprint()
    with tempfile.TemporaryDirectory() as name:
        bank = Bank(
            Database.open(f"sqlite:///{name}/bank.sqlite"), LocalTensors(Path(name) / "tensors"), index="exact"
        )
        bank.bind("default", model)
        recipe = Recipe(virtual_tokens=3, rollouts=2, steps=2)
        bank.jobs.enqueue("default", "What is 1 plus 1?", task="math", model_id=model.id, recipe=recipe)
        Worker(bank=bank, trainer_for=lambda _task: FakeTrainer(), model=model).run_one()
        [hit] = bank.nearest("default", KeyKind.INPUT, key_of("any", KeyKind.INPUT), 1)
        bank.evict("default", {hit.memory_id: None}, actor="test")
        bank.purge("default", [hit.memory_id], actor="test", reason=None)
        examine(bank, repair=True)
        bank.close()


torch.set_num_threads(1)  # a pool of threads does not survive a fork
live()
