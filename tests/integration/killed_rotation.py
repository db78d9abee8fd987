"""A rotation of keys in a process of its own that kills itself at one named step."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from forks import forks

from elm_agent.runtime import open_bank
from elm_agent.settings import Settings
from elm_agent.storage.vault.rotation import rotate_data


def kill_at(home: Path, url: str, key: bytes, step: str, nth: int) -> int | None:
    """Rotate until ``step`` comes for the ``nth`` time; the exit code: 0 when it never came so often."""
    process = forks().Process(target=_rotate, args=(home, url, key, step, nth))
    process.start()
    process.join(120)
    return process.exitcode


def _rotate(home: Path, url: str, key: bytes, step: str, nth: int) -> None:
    left = nth

    def observe(name: str, _detail: dict[str, Any]) -> None:
        nonlocal left
        left -= name == step
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    bank = open_bank(Settings(home=home, database_url=url, index="exact"), encryption_key=lambda: key)
    rotate_data(bank, "default", observe=observe)
    bank.close()
