"""Opens what a command needs and closes it again: the bank alone for reading, the runtime for answering."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elm_agent.cli.options import Shared
from elm_agent.errors import NotFound

if TYPE_CHECKING:
    from elm_agent.runtime import Runtime
    from elm_agent.storage.bank import Bank

DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True)
class OpenBank:
    """A bank and the namespace that the command is about."""

    bank: Bank
    namespace: str


@contextmanager
def opened_bank(shared: Shared) -> Iterator[OpenBank]:
    """The bank, without a model.

    Raises:
        NotFound: the namespace is not in the bank (the default one always counts as being there).
    """
    settings = shared.load()
    from elm_agent.runtime import open_bank

    bank = open_bank(settings)
    try:
        known = sorted(info.name for info in bank.namespaces())
        if settings.namespace not in known and settings.namespace != DEFAULT_NAMESPACE:
            there = ", ".join(known[:10]) or "none yet"
            raise NotFound(f"namespace {settings.namespace!r} is not in this bank; it has: {there}")
        yield OpenBank(bank, settings.namespace)
    finally:
        bank.close()


@contextmanager
def opened_runtime(shared: Shared, **overrides: Any) -> Iterator[Runtime]:
    """The runtime with its model. ``overrides`` are settings that the command itself decides."""
    settings = shared.load(**overrides)
    from elm_agent.runtime import open_runtime

    with open_runtime(settings) as runtime:
        yield runtime
