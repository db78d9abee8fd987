"""How the suites start processes of their own, which have none of our connections, locks and threads."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Literal

StartMethod = Literal["spawn", "forkserver"]
"""Of ``multiprocessing``. The server costs less where it has what a process imports; it forks with the environment,
and the packages, that it was started with."""


def context_of(method: StartMethod) -> SpawnContext | ForkServerContext:
    """Where they are made."""
    return multiprocessing.get_context("spawn") if method == "spawn" else multiprocessing.get_context("forkserver")
