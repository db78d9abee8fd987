"""Namespaces full of memories of a chosen age, state, worth and key, made directly in the tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import torch
from sqlalchemy import insert, update

from elm_agent.memory.eviction import Rules
from elm_agent.records import KeyKind, MemoryKeys, MemoryState, ModelFingerprint, Recipe, Route, UseOutcome, new_id
from elm_agent.softprompt import SoftPrompt
from elm_agent.storage.adopt import Adopted
from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.schema import MemoryRow, UseRow

MODEL = ModelFingerprint("tiny", "sha256:w", "sha256:t", "sha256:c", 4)
NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
_numbers = itertools.count(1)


def ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


@dataclass(frozen=True)
class Used:
    """One use, so many days ago."""

    days: float
    route: Route = Route.MEMORY
    outcome: UseOutcome = UseOutcome.UNKNOWN


@dataclass(frozen=True)
class Spec:
    """One memory; ``degrees`` is the direction of its key, ``days`` its age."""

    degrees: float = 0.0
    days: float = 1.0
    since: float | None = None  # days in its state; None: since it was made
    state: MemoryState = MemoryState.ACTIVE
    pinned: bool = False
    valid_days: float | None = None  # from now; negative: over
    share: float = 0.5
    subject: str | None = None
    uses: Sequence[Used] = field(default_factory=tuple)


def key(degrees: float) -> np.ndarray:
    angle = math.radians(degrees)
    return np.array([math.cos(angle), math.sin(angle), 0.0, 0.0], dtype=np.float32)


def fill(bank: Bank, specs: Sequence[Spec], *, namespace: str | None = None) -> tuple[str, list[str]]:
    """A namespace, new unless named, with these memories; returns its name and their ids, in order."""
    name = namespace or f"n{next(_numbers)}"
    bank.bind(name, MODEL)
    items = [
        Adopted(
            question=f"question {number}",
            task="math",
            prompt=SoftPrompt(torch.full((2, 4), float(number))),
            keys=MemoryKeys(input=key(spec.degrees), kv=None),
            model=MODEL,
            recipe=Recipe(virtual_tokens=2),
            origin="test",
            state=MemoryState.ACTIVE,
            subject=spec.subject,
            final_vote_share=spec.share,
        )
        for spec in specs
        for number in [next(_numbers)]
    ]
    ids = [memory_id for memory_id, _ in bank.adopt(name, items, actor="test")]
    with bank.database.write() as session:
        for memory_id, spec in zip(ids, specs, strict=True):
            where = update(MemoryRow).where(MemoryRow.namespace == name, MemoryRow.id == memory_id)
            values = {
                "state": spec.state.value,
                "pinned": spec.pinned,
                "created_at": ago(spec.days),
                "state_since": ago(spec.days if spec.since is None else spec.since),
                "valid_until": None if spec.valid_days is None else ago(-spec.valid_days),
            }
            session.execute(where.values(**values))
            if spec.uses:
                session.execute(insert(UseRow), [_use(name, memory_id, used) for used in spec.uses])
    return name, ids


def _use(namespace: str, memory_id: str, used: Used) -> dict[str, object]:
    return {
        "namespace": namespace,
        "id": new_id("use"),
        "memory_namespace": namespace,
        "memory_id": memory_id,
        "question": "q",
        "similarity": 0.5,
        "key_kind": KeyKind.INPUT.value,
        "route": used.route.value,
        "outcome": used.outcome.value,
        "created_at": ago(used.days),
    }


# --- a slow and obvious plan, written without the code under test ---------------------------------------------


def expected(specs: Sequence[Spec], ids: Sequence[str], rules: Rules) -> dict[str, set[str]]:
    """Policies that name each memory; pinned ones included."""
    named: dict[str, set[str]] = {}
    of = dict(zip(ids, specs, strict=True))
    for memory_id, spec in of.items():
        reasons = set()
        if spec.state is MemoryState.RETIRED:
            continue
        active = spec.state is MemoryState.ACTIVE
        if spec.valid_days is not None and spec.valid_days <= 0:
            reasons.add("validity")
        if rules.ttl_days is not None and spec.days > rules.ttl_days:
            reasons.add("ttl")
        if rules.unused_days is not None and active and _idle(spec) > rules.unused_days:
            reasons.add("unused")
        settled = [used for used in spec.uses if used.outcome is not UseOutcome.UNKNOWN]
        judged = rules.min_utility is not None and active and len(settled) >= rules.min_utility_uses
        if judged and _net(spec) / len(settled) < (rules.min_utility or 0.0):
            reasons.add("utility")
        if rules.models_in_use is not None and MODEL.name not in rules.models_in_use:
            reasons.add("model")
        if reasons:
            named[memory_id] = reasons
    staying = [
        memory_id
        for memory_id, spec in of.items()
        if spec.state is MemoryState.ACTIVE and (memory_id not in named or spec.pinned)
    ]
    if rules.duplicate_similarity is not None:
        kept: list[str] = []
        best_first = sorted(staying, key=lambda m: (not of[m].pinned, _least_first(of[m], m, staying, of)))
        for memory_id in best_first:
            near = [float(key(of[m].degrees) @ key(of[memory_id].degrees)) for m in kept]
            twin = bool(near) and max(near) >= rules.duplicate_similarity - 1e-6
            if twin:
                named.setdefault(memory_id, set()).add("duplicate")
            if not twin or of[memory_id].pinned:
                kept.append(memory_id)
        staying = kept
    if rules.capacity is not None:
        surplus = len(staying) - rules.capacity
        for memory_id in sorted(staying, key=lambda m: _worth(of[m], m)):
            if surplus <= 0:
                break
            named.setdefault(memory_id, set()).add("capacity")
            surplus -= not of[memory_id].pinned
    return named


def _least_first(spec: Spec, memory_id: str, all_ids: Sequence[str], of: dict[str, Spec]) -> int:
    """Rank from the most useful: 0 is the best."""
    return sum(_worth(of[other], other) > _worth(spec, memory_id) for other in all_ids)


def _net(spec: Spec) -> int:
    outcomes = [used.outcome for used in spec.uses]
    return outcomes.count(UseOutcome.FIXED) - outcomes.count(UseOutcome.BROKEN)


def _idle(spec: Spec) -> float:
    helped = [
        used.days
        for used in spec.uses
        if used.route in (Route.MEMORY, Route.AGREED) and used.outcome is not UseOutcome.BROKEN
    ]
    return min([spec.days if spec.since is None else spec.since, *helped])


def _worth(spec: Spec, memory_id: str) -> tuple[float, ...]:
    return (_net(spec), -_idle(spec), spec.share, memory_id)  # type: ignore[return-value]
