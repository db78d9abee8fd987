"""Fewer memories that answer as well: near-duplicates become one of them, a region of the bank one new memory.

Each group is tried before anything is changed (``succession``). Where its successor does not lose, the others retire
in one transaction, with the lineage in the ledger; `memories restore` brings them back. What was tried in vain is not
tried again. A pass may be stopped or killed anywhere: what was done is done, what was not begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elm_agent.errors import BankMoved, InputError
from elm_agent.memory.merging import Group, groups_of
from elm_agent.memory.succession import DISTIL, MERGE, Rules, Succession, Tools, Tried, detail_of, name_of, told_of
from elm_agent.protocols import Observer
from elm_agent.records import EventKind

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank

__all__ = ["CONDENSE_STEPS", "CondenseReport", "Rules", "Tools", "Tried", "condense"]

CONDENSE_STEPS = (
    "condense.planned",  # detail: how, members
    "distil.step",
    "condense.probed",  # detail: how, before, after
    "supersede.before_commit",
    "supersede.committed",
    "condense.done",  # detail: how, members, successor, reason
)
"""Told to an observer; a crash is tested at each of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CondenseReport:
    """``known``: groups that an earlier pass has tried in vain. ``left``: those that there was no time for."""

    namespace: str
    dry_run: bool
    tried: tuple[Tried, ...]
    known: int
    left: int
    seconds: float

    @property
    def retired(self) -> int:
        """Memories that gave their place; of a dry run: that could."""
        going = [one for one in self.tried if self.dry_run or one.successor is not None]
        return sum(len(one.members) - (one.how == MERGE) for one in going)

    @property
    def made(self) -> int:
        """New memories; of a dry run: that would be trained and tried."""
        return sum(one.how == DISTIL and (self.dry_run or one.successor is not None) for one in self.tried)


def condense(
    bank: Bank,
    namespace: str,
    rules: Rules,
    tools: Tools | None = None,
    *,
    seconds: float | None = None,
    dry_run: bool = False,
    actor: str = "maintain",
    cancelled: Callable[[], bool] = lambda: False,
    observe: Observer | None = None,
) -> CondenseReport:
    """One pass over ``namespace``: first merge, then distil what is left.

    ``seconds``: after so long no further group is begun and the one at hand is given up, unchanged. A ``dry_run``
    needs no ``tools``: it says which groups would be tried.

    Raises:
        InputError: nothing is asked for, or ``tools`` lack what is.
        NotFound, BankMoved: the namespace is not here.
        StorageError: a store refused; what was committed stays.
    """
    _check(bank, namespace, rules, tools, dry_run)
    started, tell = time.monotonic(), observe or (lambda _name, _detail: None)

    def over() -> bool:
        return cancelled() or (seconds is not None and time.monotonic() - started >= seconds)

    succeed: Callable[[str, Group], Tried] = told_of
    if not dry_run and tools is not None:
        succeed = Succession(bank, namespace, rules, tools, actor=actor, over=over, tell=tell)
    vain = {event.detail.get("tried") for event in bank.events(namespace, kind=EventKind.NOT_MERGED)}
    tried: list[Tried] = []
    known = left = 0
    gone: set[str] = set()  # of a dry run: what would go is in no further group
    for how, similarity in ((MERGE, rules.merge), (DISTIL, rules.distil)):
        for group in _groups(bank, namespace, rules, how, similarity, gone):
            if name_of(how, group, rules) in vain:
                known += 1
            elif over():
                left += 1
            else:
                tell("condense.planned", detail_of(how, group))
                tried.append(one := succeed(how, group))
                left += one.given_up
                if dry_run:
                    gone |= {memory.id for memory in (group.others if how == MERGE else group.members)}
                tell("condense.done", detail_of(how, group, successor=one.successor, reason=one.reason))
    return CondenseReport(
        namespace=namespace,
        dry_run=dry_run,
        tried=tuple(tried),
        known=known,
        left=left,
        seconds=time.monotonic() - started,
    )


def _groups(
    bank: Bank, namespace: str, rules: Rules, how: str, similarity: float | None, gone: Collection[str]
) -> list[Group]:
    """All of them before the first is changed."""
    if similarity is None:
        return []
    return list(
        groups_of(
            bank,
            namespace,
            similarity=similarity,
            kind=rules.kind,
            most=rules.most,
            weights=rules.weights,
            retiring=how == DISTIL,
            without=gone,
        )
    )


def _check(bank: Bank, namespace: str, rules: Rules, tools: Tools | None, dry_run: bool) -> None:
    if rules.merge is None and rules.distil is None:
        raise InputError("nothing to condense: ask for merging, for distilling, or for both")
    if not dry_run and (tools is None or (rules.distil is not None and tools.distil is None)):
        raise InputError("condensing tries what it makes: it needs a model, and to distil one that can be trained")
    if (there := bank.namespace(namespace).moved_to) is not None:
        raise BankMoved(f"namespace {namespace!r} was moved to {there}: open the bank there")
