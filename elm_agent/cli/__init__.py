"""The command line ``elm-agent``. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the ``elm-agent`` script; exits with the documented codes."""
    try:
        from elm_agent.cli.app import app

        app()
    except KeyboardInterrupt:  # before the command began or after its end; in between ``app`` says it itself
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
