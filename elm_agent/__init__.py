"""Experiential latent memories for agents on local language models.

An agent answers a question twice, with its nearest memory and without; a verifier routes between the two;
a background worker distils the experience into a new memory. See README.md and ``elm-agent --help``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from elm_agent.errors import ElmError
    from elm_agent.records import JobState, MemoryState, Recipe, Route, UseOutcome
    from elm_agent.runtime import Runtime, open_bank, open_runtime
    from elm_agent.settings import Settings, load_settings

_HOMES = {
    "ElmError": "errors",
    "JobState": "records",
    "MemoryState": "records",
    "Recipe": "records",
    "Route": "records",
    "UseOutcome": "records",
    "Runtime": "runtime",
    "open_bank": "runtime",
    "open_runtime": "runtime",
    "Settings": "settings",
    "load_settings": "settings",
}

__all__ = [
    "ElmError",
    "JobState",
    "MemoryState",
    "Recipe",
    "Route",
    "Runtime",
    "Settings",
    "UseOutcome",
    "load_settings",
    "open_bank",
    "open_runtime",
]


def __getattr__(name: str) -> Any:
    """Load public names on first use, so that ``import elm_agent`` stays quick and free of torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'elm_agent' has no attribute {name!r}")
    return getattr(import_module(f"elm_agent.{_HOMES[name]}"), name)
