"""The upkeep of a bank: evict what policies name, purge what was retired long ago, count uses, prune the outbox.

Safe beside agents, workers and other passes of its own: every change is a short transaction that looks again at the
memory it changes (pinned, retired or gone meanwhile: passed over), so two passes at once only share the work. A pass
may be interrupted or killed anywhere; the next one goes on with what is left. Decides nothing itself: policies do.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from elm_agent.errors import BankMoved, ElmError, NotFound
from elm_agent.memory.calibrating import Refit
from elm_agent.memory.eviction import Nearest, Planned, Rules, plan, policies_of
from elm_agent.protocols import Observer
from elm_agent.records import KeyKind, MemoryState, Vector
from elm_agent.storage import upkeep
from elm_agent.storage.purge import purge as purge_memories
from elm_agent.storage.selection import Selection, Wanted

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank

logger = logging.getLogger(__name__)

MAINTAIN_STEPS = (
    "evict.planned",  # detail: namespace, memory_id, policies, reason, kept, question
    "evict.before_commit",
    "evict.committed",
    "uses.before_commit",
    "uses.committed",
    "purge.planned",  # detail: namespace, memories
    "purge.before_commit",
    "purge.committed",
    "purge.files",
    "purge.done",
    "outbox.before_commit",
    "outbox.committed",
)
"""Told to an observer; a crash is tested at each of them."""

BATCH = 200  # memories of one transaction
_PURGED_AT_ONCE = 2000  # memories: files and indexes are cleaned once for each purge


@dataclass(slots=True, kw_only=True)
class NamespaceReport:
    """What a pass did in one namespace, or would do in a dry run."""

    namespace: str
    evicted: int = 0
    kept: int = 0  # named by a policy, and pinned
    by_policy: Counter[str] = field(default_factory=Counter)
    purged: int = 0
    exports: list[tuple[str, str, str]] = field(default_factory=list)  # (memory, pack, path) that hold purged ones
    left: list[str] = field(default_factory=list)  # sentences on indexes that may hold purged keys
    used_events: int = 0
    outbox_rows: int = 0
    calibration: str | None = None  # what was fitted anew, or why nothing was
    skipped: str | None = None  # why nothing was done here
    notes: list[str] = field(default_factory=list)  # what the user should know of how it was done


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceReport:
    """``planned``: the first memories that policies named, at most ``listed`` of them; the counts are of all.

    ``cached_files``: copies that were taken out of this machine's cache of tensors, of whatever namespace.
    """

    dry_run: bool
    namespaces: tuple[NamespaceReport, ...]
    planned: tuple[Planned, ...]
    cached_files: int = 0

    def total(self, name: str) -> int:
        """A count over all namespaces: 'evicted', 'kept', 'purged', 'used_events' or 'outbox_rows'."""
        return sum(getattr(report, name) for report in self.namespaces)


def maintain(
    bank: Bank,
    namespaces: Sequence[str] | None,
    rules: Rules,
    *,
    evict: bool = True,
    purge: bool = False,
    undo_days: float = 7.0,
    now: datetime | None = None,
    dry_run: bool = False,
    actor: str = "maintain",
    listed: int = 1000,
    refit: Refit | None = None,
    observe: Observer | None = None,
) -> MaintenanceReport:
    """One pass over ``namespaces`` (None: all of the bank, but for those that were moved away).

    Evicting is soft: a memory becomes retired by the actor ``policy:<names>`` with the reason as the event's note,
    and can be restored until a pass with ``purge`` finds that it has been retired for ``undo_days``. Uses that no
    event counts yet are written into the chain, one ``used`` event for each memory and pass (see
    ``upkeep.count_uses``). Rows of the outbox that every known index has seen are deleted. What is too old or too
    much in this machine's cache of tensors goes. Leases are not touched.

    Args:
        now: the time that rules are judged at; None: the database's clock.
        dry_run: change nothing, only report what would be evicted and purged.
        refit: how the calibration of abstention is fitted anew; None: it is left as it is.
        observe: told the steps of ``MAINTAIN_STEPS``.

    Raises:
        InputError: ``rules.where`` cannot be read, or fails for a memory.
        NotFound: an unknown namespace is named. BankMoved: one that was moved away is.
        StorageError: a store refused; what was committed stays, the next pass goes on.
    """
    tell: Observer = observe or (lambda _name, _detail: None)
    policies_of(rules)  # a condition that cannot be read is said before anything is changed
    moved_to = {info.name: info.moved_to for info in bank.namespaces()}
    names = sorted(moved_to) if namespaces is None else list(namespaces)
    if namespaces is not None:
        _check_named(names, moved_to)
    if now is None:
        with bank.database.read() as session:
            now = bank.database.now(session)
    planned: list[Planned] = []
    reports = []
    for name in names:
        report = NamespaceReport(namespace=name)
        reports.append(report)
        if (place := moved_to[name]) is not None:
            report.skipped = f"it was moved to {place}"
            continue
        if not dry_run:
            _count_and_prune(bank, report, actor, tell)
        if refit is not None and not dry_run:
            report.calibration = refit(bank, name)
        if evict:
            _evict(bank, report, rules, now, planned if len(planned) < listed else [], listed, dry_run, tell)
        if purge:
            _purge(bank, report, now - timedelta(days=undo_days), actor, dry_run, tell)
    return MaintenanceReport(
        dry_run=dry_run,
        namespaces=tuple(reports),
        planned=tuple(planned[:listed]),
        cached_files=0 if dry_run else _sweep_cache(bank),
    )


class Scheduled:
    """Runs ``work`` when it is called and ``every_seconds`` have passed since the last time; the first time at once.

    A failure is logged and costs nothing but this pass.
    """

    def __init__(self, work: Callable[[], object], every_seconds: float) -> None:
        self._work = work
        self._every_seconds = every_seconds
        self._due = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._every_seconds
        try:
            self._work()
        except ElmError as error:
            logger.warning("this pass of maintenance ended early, the next one goes on: %s", error)


def _check_named(names: Sequence[str], moved_to: Mapping[str, str | None]) -> None:
    for name in names:
        if name not in moved_to:
            there = ", ".join(sorted(moved_to)[:10]) or "none"
            raise NotFound(f"namespace {name!r} is not in this bank; it has: {there}")
        if (place := moved_to[name]) is not None:
            raise BankMoved(f"namespace {name!r} was moved to {place}: open the bank there")


def _sweep_cache(bank: Bank) -> int:
    """Only a store of other machines keeps copies here."""
    sweep = getattr(bank.tensors, "sweep_cache", None)
    return 0 if sweep is None else int(sweep())


def _count_and_prune(bank: Bank, report: NamespaceReport, actor: str, tell: Observer) -> None:
    of: dict[str, Any] = {"actor": actor, "vault": bank.vault, "tell": tell}
    report.used_events = sum(upkeep.count_uses(bank.database, report.namespace, **of))
    report.outbox_rows = sum(upkeep.prune_outbox(bank.database, report.namespace, **of))


def _evict(
    bank: Bank,
    report: NamespaceReport,
    rules: Rules,
    now: datetime,
    planned: list[Planned],
    listed: int,
    dry_run: bool,
    tell: Observer,
) -> None:
    view = Selection(bank.database, report.namespace, vault=bank.vault)
    waiting: dict[str, dict[str, str | None]] = {}  # by policies: one transaction has one actor

    def say(text: str) -> None:
        ids = {"namespace": report.namespace}
        logger.warning("namespace %s: %s", report.namespace, text, extra=ids)  # now, while it can be interrupted
        report.notes.append(text)

    policies = policies_of(rules, nearest=_nearest(bank, report.namespace), say=say)
    for named in plan(view, policies, now=now):
        if len(planned) < listed:
            planned.append(named)
        tell("evict.planned", _told(named))
        if named.kept:
            report.kept += 1
            continue
        report.by_policy.update(policy for policy, _ in named.reasons)
        if dry_run:
            report.evicted += 1
            continue
        batch = waiting.setdefault(named.policies, {})
        batch[named.facts.id] = named.reason
        if len(batch) == BATCH:
            report.evicted += _retire(bank, report.namespace, named.policies, waiting.pop(named.policies), tell)
    for names, batch in waiting.items():
        report.evicted += _retire(bank, report.namespace, names, batch, tell)


def _retire(bank: Bank, namespace: str, names: str, batch: dict[str, str | None], tell: Observer) -> int:
    return len(bank.evict(namespace, batch, actor=f"policy:{names}", observe=tell))


def _purge(bank: Bank, report: NamespaceReport, before: datetime, actor: str, dry_run: bool, tell: Observer) -> None:
    """What has been retired since before ``before``, unless it is pinned."""
    view = Selection(
        bank.database, report.namespace, vault=bank.vault, states=[MemoryState.RETIRED], page=_PURGED_AT_ONCE
    )
    if not dry_run:
        bank.finish_purges(report.namespace)
    for page in view.pages(Wanted(state_before=before)):
        ids = [facts.id for facts in page if not facts.pinned]
        tell("purge.planned", {"namespace": report.namespace, "memories": len(ids)})
        if dry_run or not ids:
            report.purged += len(ids)
            continue
        why = "its undo window is over"
        done = purge_memories(
            bank, report.namespace, ids, actor=actor, reason=why, tell=tell, only=MemoryState.RETIRED
        )
        report.purged += len(done.memory_ids)
        report.exports += done.exports
        report.left += [sentence for sentence in done.left if sentence not in report.left]


def _nearest(bank: Bank, namespace: str) -> Nearest | None:
    """Only a durable index answers faster than a scan compares."""
    if bank.durable is None or not bank.uses_durable():
        return None

    def nearest(key: Vector, k: int) -> Any:
        return bank.nearest(namespace, KeyKind.INPUT, key, k)

    return nearest


def _told(named: Planned) -> dict[str, Any]:
    facts = named.facts
    about = {"namespace": facts.namespace, "memory_id": facts.id, "question": facts.question}
    return about | {"policies": named.policies, "reason": named.reason, "kept": named.kept}
