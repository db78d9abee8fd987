"""The command line ``elm-agent``. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
import threading


def main() -> None:
    """Entry point of the ``elm-agent`` script; exits with the documented codes."""
    try:
        from elm_agent.cli.app import app

        app()
    except KeyboardInterrupt:  # before the command began or after its end; in between ``app`` says it itself
        print("error: interrupted", file=sys.stderr)
        _leave(130)
    except SystemExit as end:
        _leave(end.code)


def _leave(status: str | int | None) -> None:
    """Exit; at once where an interrupt left threads behind that compute, for Python's own shutdown may abort then."""
    if isinstance(status, int) and any(thread.name.startswith("elm-") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
