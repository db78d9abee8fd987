"""A worker in a process of its own that is killed, or stopped, at one named step."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from forks import Forked, forks
from warm_chroma import warm_chroma

from elm_agent.memory.worker import Worker
from elm_agent.protocols import Observer
from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.testing.doubles import FakeTrainer, fake_fingerprint


def open_bank(url: str, home: Path, *, chroma: bool) -> Bank:
    tensors = LocalTensors(home / "tensors")
    if not chroma:
        return Bank(Database.open(url), tensors, index="exact")
    return Bank(Database.open(url), tensors, index="durable", durable=warm_chroma(home / "chroma"))


def make_worker(bank: Bank, *, lease_seconds: float = 60.0, observe: Observer | None = None) -> Worker:
    return Worker(
        bank=bank,
        trainer_for=lambda _task: FakeTrainer(),
        model=fake_fingerprint(),
        lease_seconds=lease_seconds,
        heartbeat_seconds=lease_seconds / 5,
        observe=observe,
    )


def start(url: str, home: Path, *, step: str, nth: int, chroma: bool, by: signal.Signals) -> Forked:
    """A worker that sends itself the signal ``by`` when it reaches ``step`` for the ``nth`` time."""
    process = forks().Process(target=_work, args=(url, home, step, nth, chroma, by))
    process.start()
    return process


def _work(url: str, home: Path, step: str, nth: int, chroma: bool, by: signal.Signals) -> None:
    left = nth

    def observe(name: str, _detail: dict[str, Any]) -> None:
        nonlocal left
        left -= name == step
        if name == step and left == 0:
            os.kill(os.getpid(), by)

    bank = open_bank(url, home, chroma=chroma)
    make_worker(bank, observe=observe).run(once=True)
    bank.close()
