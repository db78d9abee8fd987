"""Forked processes for tests: the server that forks them has imported and once used everything, so one costs little.

The standard library's server searches only its own path, and passes over what it cannot import without a word: so
it is started with the path of this process.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext


def forks(*modules: str) -> ForkServerContext:
    """Where processes and pipes are made. ``modules``: imported before the first fork; later ones cost each child."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "warm_fork", *modules])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context
