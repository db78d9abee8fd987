"""Which namespaces a page shows to whom, and which it may change. Everything else does not exist for it."""

from __future__ import annotations

from dataclasses import dataclass

from elm_agent.api.access import Holder
from elm_agent.errors import InputError, NotFound, SettingsError
from elm_agent.settings import check_namespace
from elm_agent.storage.bank import Bank, NamespaceInfo


class NotAllowed(InputError):
    """A change of a namespace that may only be looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Walls:
    """``seen``, ``changed``: names of namespaces; None: all of the bank. A token may narrow what is seen."""

    seen: frozenset[str] | None = None
    changed: frozenset[str] | None = None

    def shows(self, holder: Holder, name: str) -> bool:
        return holder.may(name) and (self.seen is None or name in self.seen)

    def namespace(self, bank: Bank, holder: Holder, name: str) -> NamespaceInfo:
        """Raises ``NotFound``, with the same words for one that may not be seen and one that is not there."""
        try:
            if self.shows(holder, check_namespace(name)):
                return bank.namespace(name)
        except (NotFound, SettingsError):
            pass  # said below, in the same words
        raise NotFound(f"there is no namespace {name[:100]!r} here: the first page shows all")

    def namespaces(self, bank: Bank, holder: Holder) -> list[NamespaceInfo]:
        return [info for info in bank.namespaces() if self.shows(holder, info.name)]

    def all_of(self, holder: Holder) -> bool:
        """Whether nothing of the bank is hidden."""
        return self.seen is None and holder.namespaces is None

    def may_change(self, info: NamespaceInfo) -> bool:
        return info.moved_to is None and (self.changed is None or info.name in self.changed)

    def check_change(self, info: NamespaceInfo) -> None:
        """Raises ``NotAllowed``."""
        if not self.may_change(info):
            where = "it was moved to another bank" if info.moved_to else "this page only reads it"
            raise NotAllowed(f"namespace {info.name!r} cannot be changed here: {where}")
