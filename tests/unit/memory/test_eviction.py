"""Every policy against cases made by hand, and the whole plan against a slow, obvious one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from eviction_helpers import MODEL, NOW, Spec, Used, expected, fill
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elm_agent.memory import duplicates
from elm_agent.memory.duplicates import near_duplicates, near_duplicates_by_search
from elm_agent.memory.eviction import Planned, Rules, plan, policies_of
from elm_agent.memory.maintain import maintain
from elm_agent.records import Hit, MemoryState, Route, UseOutcome
from elm_agent.storage.bank import Bank
from elm_agent.storage.selection import Selection
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors

FIXED, BROKEN, SAME = UseOutcome.FIXED, UseOutcome.BROKEN, UseOutcome.BOTH_RIGHT


@pytest.fixture
def either_bank(database_url: str, tmp_path: Path) -> Iterator[Bank]:
    bank = Bank(Database.open(database_url, busy_seconds=20), LocalTensors(tmp_path / "tensors"), index="exact")
    yield bank
    bank.close()


def planned(bank: Bank, namespace: str, rules: Rules, *, page: int = 3) -> list[Planned]:
    return list(plan(Selection(bank.database, namespace, page=page), policies_of(rules), now=NOW))


def named(bank: Bank, specs: list[Spec], rules: Rules) -> dict[int, str]:
    """Which of the memories the plan names, by position, and by which policies."""
    namespace, ids = fill(bank, specs)
    return {ids.index(one.facts.id): one.policies for one in planned(bank, namespace, rules)}


# --- each policy --------------------------------------------------------------------------------------------


def test_time_to_live(either_bank: Bank) -> None:
    specs = [
        Spec(days=29.9),
        Spec(days=30.1),
        Spec(days=99, state=MemoryState.CANDIDATE),
        Spec(days=99, state=MemoryState.RETIRED),
    ]
    assert named(either_bank, specs, Rules(ttl_days=30)) == {1: "ttl", 2: "ttl"}


def test_what_has_expired_goes_under_any_rules(either_bank: Bank) -> None:
    specs = [Spec(valid_days=0.1), Spec(valid_days=0.0), Spec(valid_days=-5), Spec()]
    assert named(either_bank, specs, Rules()) == {1: "validity", 2: "validity"}


def test_idle_memories(either_bank: Bank) -> None:
    specs = [
        Spec(days=40),
        Spec(days=40, uses=[Used(5)]),
        Spec(days=40, uses=[Used(5, Route.ZERO_SHOT)]),  # looked at, not taken
        Spec(days=40, uses=[Used(5, outcome=BROKEN)]),  # taken, and wrong
        Spec(days=40, uses=[Used(5, Route.AGREED)]),
        Spec(days=40, since=2),  # restored two days ago
        Spec(days=40, state=MemoryState.CANDIDATE),  # never could be used
    ]
    assert named(either_bank, specs, Rules(unused_days=30)) == {0: "unused", 2: "unused", 3: "unused"}


def test_low_utility_needs_enough_uses(either_bank: Bank) -> None:
    bad, good = Used(1, outcome=BROKEN), Used(1, outcome=FIXED)
    specs = [
        Spec(uses=[bad, bad]),
        Spec(uses=[bad, bad, good]),  # -1/3
        Spec(uses=[good, bad, Used(1, outcome=SAME)]),  # 0
        Spec(uses=[bad, bad, bad, Used(1)]),  # the last one is not settled
    ]
    rules = Rules(min_utility=0.0, min_utility_uses=3)
    assert named(either_bank, specs, rules) == {1: "utility", 3: "utility"}
    assert named(either_bank, specs, replace(rules, min_utility=-0.5)) == {3: "utility"}


def test_models_no_longer_in_use(either_bank: Bank) -> None:
    specs = [Spec(), Spec(state=MemoryState.QUARANTINED)]
    assert named(either_bank, specs, Rules(models_in_use=("other",))) == {0: "model", 1: "model"}
    assert named(either_bank, specs, Rules(models_in_use=("other", "tiny"))) == {}
    assert named(either_bank, specs, Rules(models_in_use=(MODEL.id,))) == {}


def test_a_condition(either_bank: Bank) -> None:
    specs = [Spec(subject="ann"), Spec(subject="bob"), Spec(share=0.2), Spec(days=9, uses=[Used(1), Used(2)])]
    assert named(either_bank, specs, Rules(where="subject == 'ann'")) == {0: "where"}
    assert named(either_bank, specs, Rules(where="vote_share < 0.3 or uses >= 2")) == {2: "where", 3: "where"}
    assert named(either_bank, specs, Rules(where="age_days > 8 and idle_days < 2")) == {3: "where"}


def test_the_least_useful_go_over_capacity(either_bank: Bank) -> None:
    specs = [
        Spec(days=9, uses=[Used(1, outcome=FIXED)]),
        Spec(days=9),  # 1: idle longest
        Spec(days=9, uses=[Used(3)]),
        Spec(days=9, uses=[Used(0.5, outcome=BROKEN)]),  # 3: did harm
        Spec(days=8, share=0.9),
        Spec(days=8, share=0.4),  # 5: as idle as the one before, less agreed
    ]
    order = [named(either_bank, specs, Rules(capacity=6 - n)) for n in range(7)]
    assert [set(one) for one in order] == [
        set(),
        {3},
        {3, 1},
        {3, 1, 5},
        {3, 1, 5, 4},
        {3, 1, 5, 4, 2},
        set(range(6)),
    ]


def test_pins_count_and_stay(either_bank: Bank) -> None:
    specs = [Spec(days=9, pinned=True), Spec(days=8, pinned=True), Spec(days=7), Spec(days=6)]
    namespace, ids = fill(either_bank, specs)
    found = planned(either_bank, namespace, Rules(capacity=3))
    assert [(ids.index(one.facts.id), one.kept) for one in found] == [(0, True), (1, True), (2, False)]
    found = planned(either_bank, namespace, Rules(capacity=0, ttl_days=5))
    assert {ids.index(one.facts.id) for one in found if not one.kept} == {2, 3}


def test_the_more_useful_of_a_pair_stays(either_bank: Bank) -> None:
    specs = [
        Spec(degrees=0),
        Spec(degrees=3, uses=[Used(1, outcome=FIXED)]),
        Spec(degrees=40),
        Spec(degrees=42, pinned=True),
        Spec(degrees=44, uses=[Used(1, outcome=FIXED)]),
    ]
    namespace, ids = fill(either_bank, specs)
    found = planned(either_bank, namespace, Rules(duplicate_similarity=0.99))
    assert {ids.index(one.facts.id) for one in found} == {0, 2, 4}
    assert all(ids[3] in one.reason for one in found if ids.index(one.facts.id) > 1)


def test_what_goes_makes_nothing_else_go(either_bank: Bank) -> None:
    """A chain: each is near the next, the ends are not near each other; the middle one goes, both ends stay."""
    best, middle, last = Spec(degrees=0, share=0.9), Spec(degrees=7, share=0.5), Spec(degrees=14, share=0.1)
    assert named(either_bank, [best, middle, last], Rules(duplicate_similarity=0.99)) == {1: "duplicate"}
    expired = replace(best, valid_days=-1)
    found = named(either_bank, [expired, middle, last], Rules(duplicate_similarity=0.99))
    assert found == {0: "validity", 2: "duplicate"}


def test_all_reasons_of_a_memory_come_together(either_bank: Bank) -> None:
    namespace, _ = fill(either_bank, [Spec(days=50, valid_days=-1)])
    [one] = planned(either_bank, namespace, Rules(ttl_days=10, unused_days=20, where="uses == 0"))
    assert one.policies == "validity,ttl,unused,where"
    assert "more than 10 days ago; never useful, idle for more than 20 days" in one.reason


# --- near-duplicates as arrays --------------------------------------------------------------------------------


def slow_duplicates(keys: np.ndarray, similarity: float, staying: int) -> set[int]:
    kept: list[int] = []
    gone = set()
    for row in range(len(keys)):
        if any(float(keys[row] @ keys[other]) >= similarity - 1e-6 for other in kept):
            gone.add(row)
            if row >= staying:
                continue
        kept.append(row)
    return gone


@pytest.mark.parametrize("staying", [0, 5])
def test_blocks_agree_with_a_slow_reference(monkeypatch: pytest.MonkeyPatch, staying: int) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 16))
    keys = centres[rng.integers(0, 12, 200)] + 0.12 * rng.normal(size=(200, 16))
    keys = (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float32)
    keys[17] = 0.0  # a memory without a key
    for similarity in (0.9, 0.97, 1.0):
        found = list(near_duplicates(keys, similarity, staying=staying))
        assert {row for row, _, _ in found} == slow_duplicates(keys, similarity, staying)
        assert all(other < row and value >= similarity - 1e-6 for row, other, value in found)
        assert 17 not in {row for row, _, _ in found}
    assert {row for row, _, _ in near_duplicates(np.stack([keys[0]] * 20), 1.0)} == set(range(1, 20))
    assert list(near_duplicates(keys[:0], 0.9)) == []


def test_an_index_finds_the_same_duplicates() -> None:
    rng = np.random.default_rng(1)
    keys = rng.normal(size=(60, 3))
    keys = (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float32)
    ids = [f"m{row}" for row in range(60)]

    def nearest(query: np.ndarray, k: int) -> list[Hit]:
        order = np.argsort(-(keys @ query))[:k]
        return [Hit(ids[row], float(keys[row] @ query)) for row in order]

    def read(some: list[str]) -> np.ndarray:
        return np.stack([keys[ids.index(one)] for one in some])

    by_search = near_duplicates_by_search(ids, read, 0.97, nearest, staying=3)
    assert {row for row, _, _ in by_search} == {row for row, _, _ in near_duplicates(keys, 0.97, staying=3)}


# --- the whole plan -------------------------------------------------------------------------------------------

USES = st.builds(
    Used,
    days=st.sampled_from([0.5, 3.0, 12.0, 33.0]),
    route=st.sampled_from([Route.MEMORY, Route.AGREED, Route.ZERO_SHOT]),
    outcome=st.sampled_from(list(UseOutcome)),
)
SPECS = st.builds(
    Spec,
    degrees=st.sampled_from([0.0, 5.0, 10.0, 40.0, 90.0]),
    days=st.sampled_from([1.0, 5.0, 20.0, 40.0]),
    since=st.sampled_from([None, 0.5]),
    state=st.sampled_from([MemoryState.ACTIVE] * 4 + [MemoryState.CANDIDATE, MemoryState.RETIRED]),
    pinned=st.sampled_from([False, False, True]),
    valid_days=st.sampled_from([None, None, -1.0, 1.0]),
    share=st.sampled_from([0.25, 0.75]),
    uses=st.lists(USES, max_size=4).map(tuple),
)
RULES = st.builds(
    Rules,
    ttl_days=st.sampled_from([None, 10.0, 30.0]),
    capacity=st.sampled_from([None, 0, 2, 4]),
    unused_days=st.sampled_from([None, 4.0, 30.0]),
    min_utility=st.sampled_from([None, 0.0, 0.5]),
    min_utility_uses=st.sampled_from([1, 2]),
    duplicate_similarity=st.sampled_from([None, 0.99, 0.97]),
    models_in_use=st.sampled_from([None, None, ("tiny",), ("other",)]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(specs=st.lists(SPECS, min_size=1, max_size=9), rules=RULES)
def test_plan_apply_plan(either_bank: Bank, specs: list[Spec], rules: Rules) -> None:
    """The plan is the slow one; it holds no pin; a dry run says what is done; afterwards nothing is left to do."""
    bank = either_bank
    namespace, ids = fill(bank, specs)
    found = planned(bank, namespace, rules)
    policies: dict[str, set[str]] = {}
    for one in found:
        policies.setdefault(one.facts.id, set()).update(one.policies.split(","))
    assert policies == expected(specs, ids, rules)
    going = [one.facts.id for one in found if not one.kept]
    pinned = {memory_id for memory_id, spec in zip(ids, specs, strict=True) if spec.pinned}
    assert len(going) == len(set(going))
    assert not pinned & set(going)
    before = bank.memory_counts()
    dry = maintain(bank, [namespace], rules, now=NOW, dry_run=True)
    assert bank.memory_counts() == before
    done = maintain(bank, [namespace], rules, now=NOW)
    assert [one.facts.id for one in dry.planned] == [one.facts.id for one in done.planned]
    assert dry.total("evicted") == done.total("evicted") == len(going)
    for memory_id, spec in zip(ids, specs, strict=True):
        state = bank.memory(namespace, memory_id).state
        assert state == (MemoryState.RETIRED if memory_id in going else spec.state)
    assert [one for one in planned(bank, namespace, rules) if not one.kept] == []


def test_the_order_in_sql_is_that_of_the_facts(either_bank: Bank) -> None:
    uses = [Used(2), Used(4, outcome=FIXED), Used(1, outcome=BROKEN), Used(3, Route.ZERO_SHOT)]
    specs = [Spec(days=5 + n % 3, share=(n % 5) / 5, uses=tuple(uses[: n % 5]), degrees=n) for n in range(20)]
    namespace, _ = fill(either_bank, specs)
    view = Selection(either_bank.database, namespace, page=4)
    ids = [memory_id for memory_id, _ in view.by_worth()]
    facts = [one for page in view.of(ids) for one in page]
    assert [one.id for one in facts] == ids
    assert ids == [one.id for one in sorted(facts, key=lambda one: one.worth)]
