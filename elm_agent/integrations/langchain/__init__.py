"""The memory agent for LangChain: a chat model, middleware for ``create_agent``, a retriever, tools, a store.

The middleware needs the package langchain; all else needs only langchain-core, which LangGraph brings along.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from elm_agent.errors import SettingsError

if TYPE_CHECKING:
    from elm_agent.integrations.langchain.chat import ChatELM
    from elm_agent.integrations.langchain.middleware import ElmMemoryMiddleware
    from elm_agent.integrations.langchain.retriever import ElmMemoryRetriever
    from elm_agent.integrations.langchain.store import MemoryBankStore
    from elm_agent.integrations.langchain.tools import ask_tool, memory_tools

_HOMES = {
    "ChatELM": "chat",
    "ElmMemoryMiddleware": "middleware",
    "ElmMemoryRetriever": "retriever",
    "MemoryBankStore": "store",
    "ask_tool": "tools",
    "memory_tools": "tools",
}

__all__ = [
    "ChatELM",
    "ElmMemoryMiddleware",
    "ElmMemoryRetriever",
    "MemoryBankStore",
    "ask_tool",
    "memory_tools",
]


def __getattr__(name: str) -> Any:
    """Load on first use, so that what needs langchain says so only when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'elm_agent.integrations.langchain' has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "langchain":
            raise
        raise SettingsError(f"{name} needs LangChain: run `pip install 'elm-agent[langchain]'`") from None
