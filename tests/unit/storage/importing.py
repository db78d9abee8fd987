"""An import in a process of its own, that can be killed at the nth time it reaches a step of ``Bank.adopt``."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from forks import Forked, forks

from elm_agent.storage.bank import Bank
from elm_agent.storage.packs import transfer as packs
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors


def start(url: str, tensors: Path, pack: Path, *, batch: int, kill: tuple[str, int] | None = None) -> Forked:
    process = forks().Process(target=_import, args=(url, tensors, pack, batch, kill))
    process.start()
    return process


def _import(url: str, tensors: Path, pack: Path, batch: int, kill: tuple[str, int] | None) -> None:
    packs.BATCH = batch
    reached = 0

    def observe(step: str, _detail: dict[str, Any]) -> None:
        nonlocal reached
        reached += kill is not None and step == kill[0]
        if kill is not None and step == kill[0] and reached == kill[1]:
            os.kill(os.getpid(), signal.SIGKILL)

    bank = Bank(Database.open(url, busy_seconds=30), LocalTensors(tensors), index="exact")
    packs.import_pack(bank, "target", pack, actor="importer", observe=observe)
    bank.close()
