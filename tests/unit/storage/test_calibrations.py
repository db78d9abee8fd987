"""Calibrations in SQL, the uses they are fitted to, and the migration that made room for them, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from bank_helpers import MODEL, learner, unit
from sqlalchemy import inspect, text
from test_migrations import to_version

from elm_agent.bench.filling import use_of
from elm_agent.errors import NotFound
from elm_agent.memory.calibrating import Refit
from elm_agent.records import Calibration, Effect, Feedback, KeyKind, MemoryState, Route, Tier, UseOutcome, utcnow
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.moving.rows import TABLES
from elm_agent.storage.sql.database import Database, connect_only
from elm_agent.testing.memory_stores import MemoryTensors

AT = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
CALIBRATION = Calibration(
    namespace="default",
    kind=KeyKind.INPUT,
    model_id=MODEL.id,
    intercept=-1.5,
    of_similarity=2.5,
    of_utility=0.125,
    uses=30,
    helped=12.25,
    hurt=3.0,
    fitted_at=AT,
)


@pytest.fixture
def bank(database_url: str) -> Iterator[Bank]:
    opened = Bank(Database.open(database_url), MemoryTensors(), index="exact", shared=["shared"])
    for name in ("default", "other", "shared"):
        opened.bind(name, MODEL)
    yield opened
    opened.close()


def test_what_is_put_comes_back_and_the_last_one_counts(bank: Bank) -> None:
    assert bank.calibrations.get("default", KeyKind.INPUT) is None
    bank.calibrations.put(CALIBRATION)
    assert bank.calibrations.get("default", KeyKind.INPUT) == CALIBRATION
    later = replace(CALIBRATION, uses=60, intercept=-2.0, fitted_at=AT + timedelta(days=1))
    bank.calibrations.put(later)
    bank.calibrations.put(replace(CALIBRATION, kind=KeyKind.KV))
    assert bank.calibrations.get("default", KeyKind.INPUT) == later
    assert bank.calibrations.get("other", KeyKind.INPUT) is None
    with pytest.raises(NotFound, match="namespace 'nowhere' is not in this bank"):
        bank.calibrations.put(replace(CALIBRATION, namespace="nowhere"))


def test_uses_are_seen_oldest_first_and_only_those_of_the_namespace_and_kind(bank: Bank) -> None:
    learn = learner(bank)
    mine = learn("one", unit(1, 0, 0, 0)).id
    lent = learn("two", unit(0, 1, 0, 0), namespace="shared").id
    for n in range(4):
        use = use_of(
            "default", mine, id=f"use_{n}", similarity=0.5 + n / 10, created_at=AT + timedelta(minutes=n),
            outcome=UseOutcome.FIXED, tier=Tier.CHEAP,
        )  # fmt: skip
        bank.record_use(use)
    earlier = AT - timedelta(minutes=1)
    bank.record_use(use_of("default", lent, memory_namespace="shared", created_at=earlier, route=Route.AGREED))
    bank.record_use(use_of("other", lent, memory_namespace="shared"))
    bank.record_use(use_of("default", mine, id="use_kv", key_kind=KeyKind.KV))
    bank.note_feedback("default", "use_3", Feedback.RIGHT, effect=Effect.HELPED)
    found = bank.calibrations.seen("default", KeyKind.INPUT, newest=10)
    assert [one.similarity for one in found] == pytest.approx([0.9, 0.5, 0.6, 0.7, 0.8])
    assert {one.memory for one in found} == {("default", mine), ("shared", lent)}
    assert (found[-1].outcome, found[-1].effect) == (UseOutcome.FIXED, Effect.HELPED)
    assert [one.similarity for one in bank.calibrations.seen("default", KeyKind.INPUT, newest=2)] == pytest.approx(
        [0.7, 0.8]
    )
    assert bank.use("default", "use_1").tier is Tier.CHEAP


def test_a_refit_keeps_how_many_uses_it_saw(bank: Bank) -> None:
    memory = learner(bank)("one", unit(1, 0, 0, 0)).id
    refit = Refit(min_uses=3)
    for n in range(2):
        bank.record_use(use_of("default", memory, id=f"use_{n}", outcome=UseOutcome.BROKEN))
    assert refit(bank, "default") == "2 uses told of help or harm, a calibration needs 3"
    assert bank.calibrations.get("default", KeyKind.INPUT) is None
    bank.record_use(use_of("default", memory, id="use_2", outcome=UseOutcome.FIXED))
    assert refit(bank, "default").startswith("calibrated on 3 uses, helped 1, hurt 2: ")
    found = bank.calibrations.get("default", KeyKind.INPUT)
    assert found is not None
    assert (found.uses, found.helped, found.hurt, found.model_id) == (3, 1.0, 2.0, MODEL.id)
    assert found.chance(0.9, 0.0) < 0.5


def test_it_is_fitted_anew_where_a_quarter_as_many_uses_came_since(bank: Bank) -> None:
    memory = learner(bank)("one", unit(1, 0, 0, 0)).id
    refit = Refit(min_uses=8)

    def used(first: int, count: int) -> None:
        for n in range(first, first + count):
            bank.record_use(use_of("default", memory, id=f"use_{n}", outcome=UseOutcome.BROKEN, created_at=utcnow()))

    used(0, 7)
    assert refit.if_grown(bank, "default") is None, "fewer than any fit needs"
    used(7, 1)
    assert str(refit.if_grown(bank, "default")).startswith("calibrated on 8 uses")
    assert refit.if_grown(bank, "default") is None, "nothing came since"
    used(8, 1)
    assert refit.if_grown(bank, "default") is None
    bank.record_use(use_of("default", memory, id="use_kv", key_kind=KeyKind.KV, created_at=utcnow()))
    assert refit.if_grown(bank, "default") is None, "another kind of key"
    used(9, 1)
    assert str(refit.if_grown(bank, "default")).startswith("calibrated on 10 uses")


def test_a_fit_of_another_model_is_none(bank: Bank) -> None:
    memory = learner(bank)("one", unit(1, 0, 0, 0)).id
    bank.calibrations.put(replace(CALIBRATION, model_id="sha256:other", fitted_at=utcnow()))
    for n in range(3):
        bank.record_use(use_of("default", memory, id=f"use_{n}", outcome=UseOutcome.BROKEN, created_at=AT))
    assert str(Refit(min_uses=3).if_grown(bank, "default")).startswith("calibrated on 3 uses")


def test_a_calibration_moves_with_its_bank() -> None:
    assert "calibrations" in {table.name for table in TABLES}


def test_a_memory_may_be_born_quarantined(bank: Bank) -> None:
    memory = learner(bank)("one", unit(1, 0, 0, 0), state=MemoryState.QUARANTINED)
    assert memory.state is MemoryState.QUARANTINED
    assert bank.nearest("default", KeyKind.INPUT, unit(1, 0, 0, 0), 5) == []
    assert examine(bank).findings == ()
    bank.transition("default", memory.id, MemoryState.ACTIVE, actor="ada", reason=None)
    assert [hit.memory_id for hit in bank.nearest("default", KeyKind.INPUT, unit(1, 0, 0, 0), 5)] == [memory.id]


def test_up_from_the_fourth_schema_and_down_again(database_url: str) -> None:
    to_version(database_url, "0004")
    engine = connect_only(database_url)
    try:
        assert not inspect(engine).has_table("calibrations")
        bank = Bank(Database.open(database_url), MemoryTensors(), index="exact")
        bank.bind("default", MODEL)
        bank.calibrations.put(CALIBRATION)
        memory = learner(bank)("one", unit(1, 0, 0, 0)).id
        alone = use_of("default", memory, id="use_1", route=Route.MEMORY_ALONE, tier=Tier.CHEAP)
        bank.record_use(replace(alone, zero_shot_answer=None))
        bank.close()
        to_version(database_url, "0004")
        assert not inspect(engine).has_table("calibrations")
        assert "tier" not in {column["name"] for column in inspect(engine).get_columns("uses")}
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT route FROM uses")) == "memory"
        bank = Bank(Database.open(database_url), MemoryTensors(), index="exact")
        assert (bank.use("default", "use_1").tier, bank.calibrations.get("default", KeyKind.INPUT)) == (None, None)
        bank.close()
    finally:
        engine.dispose()
