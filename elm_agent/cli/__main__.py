"""``python -m elm_agent.cli`` is ``elm-agent``."""

from elm_agent.cli import main

main()
