"""Which memories should go, and why. Looks only; ``maintain`` does it.

A policy names memories with a reason. The rules that see one memory at a time are pure functions of its facts and the
time; those that compare memories (near-duplicates, capacity) come last and see what the others have left. A pinned
memory never goes: where a policy names it, the plan says that it is kept. Applying a plan and planning again gives
an empty plan, unless time has passed or memories were used in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import Protocol

from elm_agent.memory.conditions import condition
from elm_agent.memory.duplicates import near_duplicates, near_duplicates_by_search
from elm_agent.records import Hit, MemoryState, Vector
from elm_agent.storage.selection import MemoryFacts, Selection, Wanted

EXACT_LIMIT = 50_000
"""Memories of which every pair is compared without a word."""

Nearest = Callable[[Vector, int], Sequence[Hit]]
"""``nearest(key, k)``: the k active memories of the namespace with the most similar input keys."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One memory that policies name: ``reasons`` holds (policy, reason in one sentence) of each of them."""

    facts: MemoryFacts
    reasons: tuple[tuple[str, str], ...]

    @property
    def kept(self) -> bool:
        """Pins win."""
        return self.facts.pinned

    @property
    def policies(self) -> str:
        return ",".join(policy for policy, _ in self.reasons)

    @property
    def reason(self) -> str:
        return "; ".join(reason for _, reason in self.reasons)


class Policy(Protocol):
    """Names memories of one namespace that should go, each at most once, pinned ones included."""

    name: str

    def select(self, view: Selection, *, now: datetime, leaving: AbstractSet[str]) -> Iterator[Planned]:
        """``leaving``: ids that earlier policies of the same plan named and that do go."""
        ...


def plan(view: Selection, policies: Sequence[Policy], *, now: datetime) -> Iterator[Planned]:
    """What ``policies`` name in the namespace of ``view``, read as it is consumed; it may be applied meanwhile.

    Only a pinned memory can be named more than once, by policies that compare.
    """
    leaving: set[str] = set()
    for policy in policies:
        for planned in policy.select(view, now=now, leaving=leaving):
            if not planned.kept:
                leaving.add(planned.facts.id)
            yield planned


# --- rules: one memory at a time --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """``judge`` says why a memory should go, or None; ``wanted`` lets the database pass over the others."""

    name: str
    wanted: Callable[[datetime], Wanted]
    judge: Callable[[MemoryFacts, datetime], str | None]


def time_to_live(days: float) -> Rule:
    """Made more than ``days`` ago."""
    age = timedelta(days=days)

    def judge(facts: MemoryFacts, now: datetime) -> str | None:
        if facts.created_at >= now - age:
            return None
        return f"made on {facts.created_at:%Y-%m-%d}, more than {days:g} days ago"

    return Rule("ttl", lambda now: Wanted(created_before=now - age), judge)


def validity() -> Rule:
    """Its ``valid_until`` has passed."""

    def judge(facts: MemoryFacts, now: datetime) -> str | None:
        if facts.valid_until is None or facts.valid_until > now:
            return None
        return f"valid until {facts.valid_until:%Y-%m-%d %H:%M} UTC"

    return Rule("validity", lambda now: Wanted(expired_at=now), judge)


def unused(days: float) -> Rule:
    """An active memory that was not useful for ``days``; counted from when it became active, if that is later."""
    pause = timedelta(days=days)

    def judge(facts: MemoryFacts, now: datetime) -> str | None:
        if facts.state != MemoryState.ACTIVE or facts.fresh_at >= now - pause:
            return None
        last = "never useful" if facts.last_useful is None else f"last useful on {facts.last_useful:%Y-%m-%d}"
        return f"{last}, idle for more than {days:g} days"

    return Rule("unused", lambda now: Wanted(idle_since=now - pause), judge)


def low_utility(below: float, at_least: int) -> Rule:
    """An active memory with at least so many settled uses that fixed too few answers for those it broke."""

    def judge(facts: MemoryFacts, now: datetime) -> str | None:  # noqa: ARG001
        if facts.state != MemoryState.ACTIVE or facts.settled < at_least or facts.utility >= below:
            return None
        done = f"fixed {facts.fixed} and broke {facts.broken} of {facts.settled} settled answers"
        return f"{done}: utility {facts.utility:.3f} is below {below:g}"

    return Rule("utility", lambda _now: Wanted(utility_below=(below, at_least)), judge)


def other_models(in_use: Sequence[str]) -> Rule:
    """Made for a model that is no longer in use. ``in_use``: ids (digests) or names of models."""
    used = frozenset(in_use)

    def judge(facts: MemoryFacts, now: datetime) -> str | None:  # noqa: ARG001
        if used & {facts.model.id, facts.model.name}:
            return None
        return f"made for model {facts.model.name!r}, which is not in use"

    return Rule("model", lambda _now: Wanted(model_not_in=used), judge)


def expression(text: str) -> Rule:
    """The condition holds; see ``conditions``. Raises ``InputError`` for one that cannot be read."""
    holds = condition(text)

    def judge(facts: MemoryFacts, now: datetime) -> str | None:
        return f"true of it: {text}" if holds(facts, now) else None

    return Rule("where", lambda _now: Wanted(everything=True), judge)


class EachMemory:
    """The policy that asks every rule about every memory, in one pass: all reasons of a memory come together."""

    name = "rules"

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules

    def select(self, view: Selection, *, now: datetime, leaving: AbstractSet[str]) -> Iterator[Planned]:
        wanted = reduce(or_, (rule.wanted(now) for rule in self._rules), Wanted())
        for page in view.pages(wanted) if self._rules else ():
            for facts in page:
                judged = [(rule.name, rule.judge(facts, now)) for rule in self._rules]
                reasons = tuple((name, reason) for name, reason in judged if reason is not None)
                if reasons and facts.id not in leaving:
                    yield Planned(facts, reasons)


# --- policies that compare --------------------------------------------------------------------------------------


class NearDuplicates:
    """Of two active memories with input keys at least this similar the less useful one goes, pinned ones never.

    Up to ``exact_limit`` memories (None: ``EXACT_LIMIT``) every pair is compared; above, ``nearest(key, k)`` is
    asked. Without it the pairs are compared all the same, which may take long: ``say`` is told so before it begins.
    """

    name = "duplicate"

    def __init__(
        self,
        similarity: float,
        *,
        nearest: Nearest | None = None,
        exact_limit: int | None = None,
        say: Callable[[str], object] | None = None,
    ) -> None:
        self._similarity = similarity
        self._nearest = nearest
        self._say = say or (lambda _text: None)
        self._exact_limit = EXACT_LIMIT if exact_limit is None else exact_limit

    def select(self, view: Selection, *, now: datetime, leaving: AbstractSet[str]) -> Iterator[Planned]:  # noqa: ARG002
        left = [(memory_id, pinned) for memory_id, pinned in view.by_worth() if memory_id not in leaving]
        pinned = [memory_id for memory_id, is_pinned in reversed(left) if is_pinned]
        ids = pinned + [memory_id for memory_id, is_pinned in reversed(left) if not is_pinned]
        if self._nearest is None and len(ids) > self._exact_limit:
            self._say(
                f"each of {len(ids)} active memories is compared with all others to find near-duplicates, which "
                f"takes long above {self._exact_limit}, because no durable index is open here: set `index` to "
                "'pgvector' or a server, or set `eviction.every_seconds` where the index is open"
            )
        if self._nearest is None or len(ids) <= self._exact_limit:
            found = near_duplicates(view.input_keys(ids), self._similarity, staying=len(pinned))
        else:
            found = near_duplicates_by_search(
                ids, view.input_keys, self._similarity, self._nearest, staying=len(pinned)
            )
        of = {ids[row]: (ids[other], similarity) for row, other, similarity in found}
        for page in view.of(list(of)):
            for facts in page:
                other, similarity = of[facts.id]
                reason = f"similarity {similarity:.4f} to {other}, which is pinned or more useful"
                yield Planned(facts, ((self.name, reason),))


class Capacity:
    """At most so many active memories: the least useful go (``MemoryFacts.worth``); pinned ones count and stay."""

    name = "capacity"

    def __init__(self, most: int) -> None:
        self._most = most

    def select(self, view: Selection, *, now: datetime, leaving: AbstractSet[str]) -> Iterator[Planned]:  # noqa: ARG002
        if view.active() <= self._most:
            return
        left = [(memory_id, pinned) for memory_id, pinned in view.by_worth() if memory_id not in leaving]
        surplus = len(left) - self._most
        reason = f"least useful of {len(left)} active memories, {self._most} may stay"
        named = []
        for memory_id, pinned in left:
            if surplus <= 0:
                break
            named.append(memory_id)
            surplus -= not pinned
        for page in view.of(named):
            yield from (Planned(facts, ((self.name, reason),)) for facts in page)


# --- which of them ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which policies apply, and with what; None switches one off. The fields are those of ``EvictionSettings``."""

    ttl_days: float | None = None
    capacity: int | None = None
    unused_days: float | None = None
    min_utility: float | None = None
    min_utility_uses: int = 10
    duplicate_similarity: float | None = None
    models_in_use: Sequence[str] | None = None
    where: str | None = None


def policies_of(
    rules: Rules, *, nearest: Nearest | None = None, say: Callable[[str], object] | None = None
) -> list[Policy]:
    """The policies of ``rules``, in the order in which they are asked. What has expired goes under any rules.

    ``nearest``, ``say``: see ``NearDuplicates``. Raises ``InputError`` for a ``where`` that cannot be read.
    """
    each = [validity()]
    each += [] if rules.ttl_days is None else [time_to_live(rules.ttl_days)]
    each += [] if rules.unused_days is None else [unused(rules.unused_days)]
    each += [] if rules.min_utility is None else [low_utility(rules.min_utility, rules.min_utility_uses)]
    each += [] if rules.models_in_use is None else [other_models(rules.models_in_use)]
    each += [] if rules.where is None else [expression(rules.where)]
    chosen: list[Policy] = [EachMemory(each)]
    if rules.duplicate_similarity is not None:
        chosen.append(NearDuplicates(rules.duplicate_similarity, nearest=nearest, say=say))
    if rules.capacity is not None:
        chosen.append(Capacity(rules.capacity))
    return chosen
