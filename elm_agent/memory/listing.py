"""Memories that fulfil a condition or came from a subject, newest first. Looks only."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from elm_agent.memory.conditions import condition
from elm_agent.records import MemoryRecord, MemoryState
from elm_agent.storage.selection import Selection, Wanted

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank


def matching(
    bank: Bank,
    namespace: str,
    *,
    where: str | None = None,
    subject: str | None = None,
    state: MemoryState | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[MemoryRecord]:
    """``where``: see ``conditions``. Reads no more pages than the answer needs. Raises ``InputError``."""
    holds = None if where is None else condition(where)
    with bank.database.read() as session:
        now = bank.database.now(session)
    view = Selection(
        bank.database, namespace, vault=bank.vault, states=list(MemoryState) if state is None else [state]
    )

    def found() -> Iterator[str]:
        for page in view.pages(Wanted(everything=True), newest_first=True, subject=subject):
            yield from (facts.id for facts in page if holds is None or holds(facts, now))

    wanted = islice(found(), offset, None if limit is None else offset + limit)
    return [bank.memory(namespace, memory_id) for memory_id in wanted]
