"""The command line ``elm-agent``. Nothing heavy is imported before a command needs it."""

from __future__ import annotations


def main() -> None:
    """Entry point of the ``elm-agent`` script; exits with the documented codes."""
    from elm_agent.cli.app import app

    app()
