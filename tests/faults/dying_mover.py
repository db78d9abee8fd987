"""A process that moves a bank and kills itself at one named step."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from forks import Forked, forks

from elm_agent.storage.bank import Bank
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.moving.move import move
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors


def open_bank(url: str, tensors: Path) -> Bank:
    """With files of its index beside the tensors."""
    index = ExactIndex(tensors.with_name(f"{tensors.name}-index"), keep_above=1)
    return Bank(Database.open(url), LocalTensors(tensors), index="exact", exact=index)


def start(source: tuple[str, Path], target: tuple[str, Path], *, step: str, nth: int) -> Forked:
    """``source``, ``target``: URL and folder of the tensors. It dies at ``step`` for the ``nth`` time."""
    process = forks().Process(target=_move, args=(source, target, step, nth))
    process.start()
    return process


def _move(source: tuple[str, Path], target: tuple[str, Path], step: str, nth: int) -> None:
    left = nth

    def observe(name: str, _detail: dict[str, Any]) -> None:
        nonlocal left
        left -= name == step
        if name == step and left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    move(open_bank(*source), open_bank(*target), actor="mover", observe=observe)
