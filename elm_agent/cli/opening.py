"""Opens what a command needs and closes it again: the bank alone for reading, the runtime for answering."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elm_agent.cli.logs import lines_on_stderr
from elm_agent.cli.options import Shared
from elm_agent.cli.progress import download_bar
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
def opened_bank(shared: Shared, *, owns_index: bool = False) -> Iterator[OpenBank]:
    """The bank, without a model. ``owns_index``: see ``open_bank``; a purge cleans the index as well.

    Raises:
        NotFound: there is no bank, or the namespace is not in it. Looking at a bank never makes one.
    """
    settings = shared.load()
    with whole_bank(settings, owns_index=owns_index) as bank:
        known = [info.name for info in bank.namespaces()]
        if settings.namespace not in known:
            there = ", ".join(known[:10]) or "none yet"
            raise NotFound(f"namespace {settings.namespace!r} is not in this bank; it has: {there}")
        yield OpenBank(bank, settings.namespace)


@contextmanager
def whole_bank(settings: Settings, *, owns_index: bool, make: bool = False) -> Iterator[Bank]:
    """All namespaces of the bank, without a model. ``owns_index``: see ``open_bank``; ``make``: if there is none.

    Raises:
        NotFound: there is no bank.
    """
    lines_on_stderr(settings.log_format)
    file = Path(settings.resolved_database_url.removeprefix("sqlite:///"))
    if settings.database_url is None and not make and not file.exists():
        raise NotFound(f"there is no bank in {settings.home}: `elm-agent ask` makes one, --home names another")
    from elm_agent.runtime import open_bank

    bank = open_bank(settings, owns_index=owns_index)
    try:
        yield bank
    finally:
        bank.close()


@contextmanager
def opened_runtime(shared: Shared, *, owns_index: bool = True, **overrides: Any) -> Iterator[Runtime]:
    """The runtime with its model, fetched first if need be. ``overrides`` are settings the command itself decides."""
    settings = shared.load(**overrides)
    lines_on_stderr(settings.log_format)
    from elm_agent.runtime import open_runtime

    with download_bar(shared.output(), settings.model) as progress:
        runtime = open_runtime(settings, progress=progress, owns_index=owns_index)
    with runtime:
        yield runtime
