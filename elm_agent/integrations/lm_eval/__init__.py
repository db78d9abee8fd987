"""The memory agent under the LM Evaluation Harness, so that others can measure it with their own tool.

`python -m elm_agent.integrations.lm_eval` is the harness's own command with the model ``elm_agent`` in it. Needs the
package lm-eval.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from elm_agent.errors import SettingsError

if TYPE_CHECKING:
    from elm_agent.integrations.lm_eval.harness import ElmAgentLM

__all__ = ["ElmAgentLM"]

MISSING = "the LM Evaluation Harness is not installed: run `pip install 'elm-agent[lm-eval]'`"


def __getattr__(name: str) -> Any:
    """Load on first use, so that what needs lm-eval says so only when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.harness"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "lm_eval":
            raise
        raise SettingsError(MISSING) from None
