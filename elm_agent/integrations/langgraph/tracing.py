"""Ids as metadata of the run that LangSmith traces now, so that traces can be found by memory. Sends nothing itself.

Without tracing, which an application switches on (LANGSMITH_TRACING), there is no such run and nothing is done.
"""

from __future__ import annotations

from langsmith.run_helpers import get_current_run_tree


def trace(**ids: str | None) -> None:
    """Each id that is not None as metadata ``elm_<name>`` of the current run; never a text."""
    run = get_current_run_tree()
    if run is not None:
        run.add_metadata({f"elm_{name}": value for name, value in ids.items() if value is not None})
