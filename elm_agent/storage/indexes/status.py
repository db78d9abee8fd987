"""How far each index has come. Only looks; asks the index in use whether it can be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from elm_agent.errors import IndexUnavailable
from elm_agent.protocols import IndexCapability
from elm_agent.records import KeyKind, MemoryState
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.indexes.feed_durable import fed_indexes

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """One index and one namespace. ``in_use``: by this process, as its settings say; None of a number: not known."""

    index: str
    namespace: str
    in_use: bool
    entries: dict[KeyKind, int] | None
    active: int  # memories of the namespace that an index should have
    fed: int  # revision
    newest: int  # revision
    problem: str | None

    @property
    def behind(self) -> int:
        """Changes that are still to be fed."""
        return max(0, self.newest - self.fed)


def index_status(bank: Bank) -> list[IndexStatus]:
    """Every index that was ever fed from this bank, and the one in use, for every namespace."""
    found: list[IndexStatus] = []
    counts = bank.memory_counts()
    for info in bank.namespaces():
        fed = fed_indexes(bank.database, info.name)
        entries: dict[KeyKind, int] | None = None
        problem, used = None, bank.durable
        if used is not None:
            try:
                lost = used.rebuilt
                entries = {kind: len(used.ids(info.name, kind)) for kind in KeyKind}
                problem = "it began anew: it has to be fed" if lost else None
            except IndexUnavailable as error:
                problem = str(error)
            fed.setdefault(used.name, 0)
        for name in sorted(fed):
            mine = used is not None and name == used.name
            found.append(
                IndexStatus(
                    index=name,
                    namespace=info.name,
                    in_use=mine,
                    entries=entries if mine else None,
                    active=counts.get(info.name, {}).get(MemoryState.ACTIVE, 0),
                    fed=fed[name],
                    newest=info.revision,
                    problem=problem if mine else "not in use here; what it holds is not looked after",
                )
            )
    return found


def capabilities(bank: Bank) -> frozenset[IndexCapability]:
    """Of the index in use, the exact one where there is no other."""
    return bank.durable.capabilities if bank.durable is not None else ExactIndex.capabilities
