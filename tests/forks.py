"""Forked processes for tests: the server that forks them has imported and once used everything, so one costs little.

A process has one such server, and whoever starts it says what it imports: so all tests come here. What is set in the
environment after that, its children do not see. The standard library's server searches only its own path, and passes
over what it cannot import without a word: so it is started with the path of this process.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkContext, ForkProcess, ForkServerContext, ForkServerProcess

Forked = ForkProcess | ForkServerProcess


def forks() -> ForkServerContext | ForkContext:
    """Where processes and pipes are made. In a child of the server it asks to be without threads."""
    if multiprocessing.parent_process() is not None:  # as warm as another child, and that server is not within reach
        return multiprocessing.get_context("fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "warm_fork"])
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
