"""A command that serves, as a process, from what it says first until it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(*words: str, cwd: Path, **variables: str) -> Iterator[str]:
    """The address that ``elm-agent WORDS`` serves in ``cwd``, at a port of its choice; then SIGTERM ends it well."""
    server = subprocess.Popen(
        [sys.executable, "-m", "elm_agent.cli", *words, "--port", "0", "--json"],
        cwd=cwd,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line, server.communicate()
        told = json.loads(line)
        assert told["event"] == "serving"
        yield told["url"]
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=120)
        assert server.returncode == 130
        assert "Traceback" not in errors
    finally:
        server.kill()
        server.communicate()
