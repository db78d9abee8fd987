"""Opens what a command needs and closes it again: the bank alone for reading, the runtime for answering."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elm_agent.cli.options import Shared
from elm_agent.errors import NotFound

if TYPE_CHECKING:
    from elm_agent.runtime import Runtime
    from elm_agent.settings import Settings
    from elm_agent.storage.bank import Bank


@dataclass(frozen=True, slots=True)
class OpenBank:
    """A bank and the namespace that the command is about."""

    bank: Bank
    namespace: str


@contextmanager
def opened_bank(shared: Shared) -> Iterator[OpenBank]:
    """The bank, without a model.

    Raises:
        NotFound: there is no bank, or the namespace is not in it. Looking at a bank never makes one.
    """
    settings = shared.load()
    _check_there(settings)
    from elm_agent.runtime import open_bank

    bank = open_bank(settings)
    try:
        known = [info.name for info in bank.namespaces()]
        if settings.namespace not in known:
            there = ", ".join(known[:10]) or "none yet"
            raise NotFound(f"namespace {settings.namespace!r} is not in this bank; it has: {there}")
        yield OpenBank(bank, settings.namespace)
    finally:
        bank.close()


def _check_there(settings: Settings) -> None:
    file = Path(settings.resolved_database_url.removeprefix("sqlite:///"))
    if settings.database_url is None and not file.exists():
        raise NotFound(f"there is no bank in {settings.home}: `elm-agent ask` makes one, --home names another")


@contextmanager
def opened_runtime(shared: Shared, **overrides: Any) -> Iterator[Runtime]:
    """The runtime with its model. ``overrides`` are settings that the command itself decides."""
    settings = shared.load(**overrides)
    from elm_agent.runtime import open_runtime

    with open_runtime(settings) as runtime:
        yield runtime
