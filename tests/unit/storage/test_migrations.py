"""A bank of the first schema, with rows in it, comes to the newest one and back, on both databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import first_schema
import pytest
from alembic import command
from alembic.config import Config
from forks import forks
from sqlalchemy import Engine, inspect, text
from vault_helpers import FIRST, masters

import elm_agent.storage
from elm_agent.errors import StorageError
from elm_agent.records import Effect, EventKind, Feedback, KeyKind, MemoryState
from elm_agent.storage.bank import Bank
from elm_agent.storage.ledger import chain
from elm_agent.storage.sql.database import Database, connect_only
from elm_agent.storage.sql.schema import HEAD
from elm_agent.storage.vault.encrypted import EncryptedVault
from elm_agent.storage.vault.rotation import rotate_data
from elm_agent.testing.memory_stores import MemoryTensors

MIGRATIONS = Path(elm_agent.storage.__file__).parent / "sql" / "migrations"


@pytest.fixture
def database_url(bare_database_url: str) -> str:
    """Every schema is made here."""
    return bare_database_url


@pytest.fixture
def first(database_url: str) -> Iterator[Engine]:
    """A database of schema 0001 with rows in every table."""
    to_version(database_url, "0001")
    engine = connect_only(database_url)
    first_schema.fill(engine)
    yield engine
    engine.dispose()


def to_version(url: str, version: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = connect_only(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        step = command.downgrade if _is_newer(connection, version) else command.upgrade
        step(config, version)
    engine.dispose()


def _is_newer(connection: Any, version: str) -> bool:
    if not inspect(connection).has_table("alembic_version"):
        return False
    there: str = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return there > version


def version_of(engine: Engine) -> str:
    with engine.connect() as connection:
        return str(connection.scalar(text("SELECT version_num FROM alembic_version")))


def test_rows_of_the_first_schema_arrive_whole(first: Engine, database_url: str) -> None:
    before = first_schema.rows(first)
    bank = Bank(Database.open(database_url), MemoryTensors(), index="exact")
    assert version_of(first) == HEAD
    for name in ("default", "other"):
        report = chain.verify(bank.database, name)
        assert report.broken is None
        assert report.events == len([event for event in before["events"] if event["namespace"] == name])
    memories = {memory.id: memory for memory in bank.memories("default")}
    assert {memory.state for memory in memories.values()} == set(MemoryState) - {MemoryState.PURGED}
    for old in (row for row in before["memories"] if row["namespace"] == "default"):
        new = memories[old["id"]]
        assert (new.question, new.reason, new.pinned) == (old["question"], old["reason"], bool(old["pinned"]))
        assert (new.origin, new.subject, new.valid_until) == ("local", None, None)
        assert (new.state_since, new.content_digest) == (new.updated_at, new.tensor_digest)
        assert bank.episode("default", new.id).question == old["question"]
        assert bank.keys("default", new.id).input.shape == (4,)
    active = next(memory for memory in memories.values() if memory.state == MemoryState.ACTIVE)
    assert (active.uses, active.fixed) == (2, 1)
    [hit] = bank.nearest("default", KeyKind.INPUT, first_schema.KEY, 5)
    assert hit.memory_id == active.id
    [evicted] = bank.events("default", kind=EventKind.EVICTED)
    assert (evicted.note, evicted.detail) == (first_schema.REASON, {"from": "active"})
    assert [job.state for job in bank.jobs.list("default")] == ["queued", "done"]
    # and the chain goes on
    bank.pin("default", active.id, True, actor="test")
    assert chain.verify(bank.database, "default").broken is None
    bank.close()


def test_down_to_the_first_schema_and_up_again(first: Engine, database_url: str) -> None:
    before = first_schema.rows(first)
    to_version(database_url, "head")
    to_version(database_url, "0001")
    assert first_schema.rows(first) == before
    Database.open(database_url).close()
    database = Database.open(database_url)
    assert chain.verify(database, "default").broken is None
    database.close()


def test_what_only_the_new_schema_knows_is_named_on_the_way_down(first: Engine, database_url: str) -> None:
    bank = Bank(Database.open(database_url), MemoryTensors(), index="exact")
    [memory] = bank.memories("default", state=MemoryState.CANDIDATE)
    bank.review("default", memory.id, actor="somebody", verdict="good", note="I looked")
    bank.purge("default", [memory.id], actor="somebody", reason=None)
    bank.close()
    to_version(database_url, "0001")
    found = first_schema.rows(first)
    assert ("default", memory.id) not in {(row["namespace"], row["id"]) for row in found["memories"]}
    kinds = [(event["kind"], json.loads(event["detail"]).get("was")) for event in found["events"]]
    assert ("repaired", "purged") in kinds
    assert ("repaired", "reviewed") in kinds


def test_reasons_that_no_database_keeps_are_made_storable(first: Engine, database_url: str) -> None:
    """The first schema hid them in JSON, where a NUL or half a character is six ordinary ones."""
    detail = json.dumps({"from": "active", "reason": "a\x00b\ud800c", "more": ["\udfff"]})
    with first.begin() as connection:
        connection.execute(text("UPDATE events SET detail = :d WHERE revision = 5"), {"d": detail})
    bank = Bank(Database.open(database_url), MemoryTensors(), index="exact")
    for name in ("default", "other"):
        assert chain.verify(bank.database, name).broken is None
        [evicted] = bank.events(name, kind=EventKind.EVICTED)
        assert (evicted.note, evicted.detail) == ("a\ufffdb\ufffdc", {"from": "active", "more": ["\ufffd"]})
    bank.close()


@pytest.fixture
def second(first: Engine, database_url: str) -> Engine:
    """A database of schema 0002, also with uses of namespaces that nobody ever bound."""
    to_version(database_url, "0002")
    with first.begin() as connection:
        for name in ("never-bound", "not usable/", "default"):
            columns = "memory_namespace, memory_id, question, similarity, key_kind, route, outcome, created_at"
            connection.execute(
                text(
                    f"INSERT INTO uses (namespace, id, {columns}) SELECT :name, 'use_of_' || id, {columns} FROM uses "
                    "WHERE namespace = 'other'"
                ),
                {"name": name},
            )
    return first


def use_key(use: dict[str, Any]) -> tuple[str, str]:
    return use["namespace"], use["id"]


def test_rows_of_the_second_schema_arrive_whole(second: Engine, database_url: str) -> None:
    before = first_schema.rows(second)
    bank = Bank(Database.open(database_url), MemoryTensors(), index="exact", shared=["other"])
    assert version_of(second) == HEAD
    after = first_schema.rows(second)
    for table in set(first_schema.TABLES) - {"namespaces", "uses", "memories"}:
        assert after[table] == before[table]
    assert after["memories"] == [memory | {"review": None} for memory in before["memories"]]
    later = dict.fromkeys(
        ("feedback", "feedback_answer", "feedback_effect", "feedback_at", "tier", "review", "review_note")
    )
    housed_uses = [use | later for use in before["uses"] if use["namespace"] != "not usable/"]
    assert sorted(after["uses"], key=use_key) == sorted(housed_uses, key=use_key)
    assert [info.name for info in bank.namespaces()] == ["default", "never-bound", "other"]
    for info in bank.namespaces():
        assert chain.verify(bank.database, info.name).broken is None
    housed = bank.namespaces()[1]
    assert (housed.model, housed.revision) == (bank.namespaces()[2].model, 0)
    bank.bind("never-bound", housed.model)
    assert {use.memory_namespace for use in bank.uses("never-bound")} == {"other"}
    foreign = [key["referred_table"] for key in inspect(second).get_foreign_keys("uses")]
    assert sorted(foreign) == ["memories", "namespaces"]
    bank.close()


def test_down_to_the_second_schema_and_up_again(second: Engine, database_url: str) -> None:
    to_version(database_url, "0003")
    before = first_schema.rows(second)
    to_version(database_url, "0002")
    assert first_schema.rows(second) == before
    assert [key["referred_table"] for key in inspect(second).get_foreign_keys("uses")] == ["memories"]
    jobs = {index["name"] for index in inspect(second).get_indexes("jobs")}
    assert "ix_jobs_claim" in jobs
    assert not {"ix_jobs_model", "ix_jobs_updated"} & jobs
    to_version(database_url, "0003")
    assert first_schema.rows(second) == before


def test_feedback_is_added_to_uses_of_the_third_schema_and_goes_on_the_way_down(
    second: Engine, database_url: str
) -> None:
    to_version(database_url, "0003")
    before = first_schema.rows(second)
    bank = Bank(Database.open(database_url), MemoryTensors(), index="exact", shared=["other"])
    assert bank.uses("default")[0].feedback is None
    noted = bank.note_feedback("default", "use_1", Feedback.WRONG, answer="56", effect=Effect.HURT)
    assert (noted.use.feedback, noted.use.feedback_answer, noted.use.feedback_effect) == ("wrong", "56", "hurt")
    assert noted.use.feedback_at is not None
    [found] = bank.posteriors("default", [("default", "mem_1")]).values()
    # one was fixed before anybody could say so, one is hurt by what was just said; a use of the same memory is abroad
    assert (found.helped, found.same, found.hurt) == (2, 1, 2)
    bank.close()
    to_version(database_url, "0003")
    assert first_schema.rows(second) == before
    columns = {index["name"]: index["column_names"] for index in inspect(second).get_indexes("uses")}
    assert columns["ix_uses_memory"] == ["memory_namespace", "memory_id", "outcome"]
    to_version(database_url, "head")
    bank = Bank(Database.open(database_url), MemoryTensors(), index="exact", shared=["other"])
    assert bank.use("default", "use_1").feedback is None
    bank.close()


@pytest.mark.usefixtures("second")
def test_sealed_salts_outlast_the_way_down_and_up(database_url: str) -> None:
    database = Database.open(database_url)
    vault = EncryptedVault(database, masters(FIRST))
    vault.ensure_all()
    bank = Bank(database, MemoryTensors(), index="exact", vault=vault)
    assert rotate_data(bank, "default").finished
    to_version(database_url, "0002")
    to_version(database_url, "0003")
    report = chain.verify(bank.database, "default", vault=bank.vault)
    assert (report.broken, report.closed_notes) == (None, 0)
    assert chain.verify(bank.database, "default").closed_notes > 0
    bank.close()


def test_processes_that_open_it_at_once_migrate_it_once(first: Engine, database_url: str) -> None:
    with ProcessPoolExecutor(4, mp_context=forks()) as pool:
        heads = list(pool.map(first_schema.open_and_verify, [database_url] * 8))
    assert len(set(heads)) == 1
    assert version_of(first) == HEAD


@pytest.mark.parametrize("table", ["uses", "exports"])
def test_a_migration_that_dies_inside_is_undone(first: Engine, database_url: str, table: str) -> None:
    """Killed when ``table`` is made: everything is as it was, and the next one who opens it migrates."""
    before = first_schema.rows(first)
    process = forks().Process(target=first_schema.die_inside, args=(database_url, table))
    process.start()
    process.join(60)
    assert process.exitcode == -9
    assert version_of(first) == "0001"
    assert first_schema.rows(first) == before
    Database.open(database_url).close()
    assert version_of(first) == HEAD


def test_tables_without_a_version_are_refused_in_one_sentence(first: Engine, database_url: str) -> None:
    with first.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    with pytest.raises(StorageError, match="has tables of a bank but no version"):
        Database.open(database_url)


def test_a_newer_database_is_refused_and_left_alone(first: Engine, database_url: str) -> None:
    with first.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageError, match=r"was written by a newer elm-agent \(schema 9999"):
        Database.open(database_url)
    assert version_of(first) == "9999"
