"""Rotation of master and data keys: everything is sealed anew, nothing is lost, others go on meanwhile."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bank_helpers import MODEL, RECIPE, learner, unit
from sqlalchemy import select, update
from vault_helpers import FIRST, SECOND, encrypted_bank, masters, plain_bank

from elm_agent.bench import filling
from elm_agent.errors import InputError, StorageError, VaultLocked
from elm_agent.records import EventKind, MemoryState, Route, UseRecord
from elm_agent.storage.bank import Adopted, Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.ledger import chain
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import EventRow, JobRow, MemoryRow, UseRow
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.storage.vault.base import LockedVault
from elm_agent.storage.vault.crypto import version_of
from elm_agent.storage.vault.rotation import rotate_data, rotate_master
from elm_agent.storage.vault.status import VaultStatus, vault_status


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tensors"


@pytest.fixture
def bank(database: Database, folder: Path) -> Iterator[Bank]:
    return encrypted_bank(database, folder)


def fill(bank: Bank, count: int = 3, *, first: int = 0) -> list[str]:
    """Memories with uses, a queued job, a note: content in every table."""
    learn, ids = learner(bank), []
    for n in range(first, first + count):
        memory = learn(f"question {n}", unit(1, n, 0, 0))
        bank.record_use(use_of(memory.id, n))
        ids.append(memory.id)
    bank.transition("default", ids[0], MemoryState.RETIRED, actor="me", reason="a note of mine")
    bank.transition("default", ids[0], MemoryState.ACTIVE, actor="me", reason=None)
    bank.jobs.enqueue("default", f"queued {first}", task="math", model_id=MODEL.id, recipe=RECIPE, subject="ada")
    return ids


def cancel_jobs(bank: Bank) -> None:
    """So that the next job to be claimed is the next one that is queued."""
    for job in bank.jobs.list("default"):
        bank.jobs.cancel(job.namespace, job.id)


def use_of(memory_id: str, n: int) -> UseRecord:
    return filling.use_of(
        "default", memory_id, question=f"asked {n}", route=Route.AGREED, reason="both agree", subject="ada"
    )


def everything(bank: Bank) -> Any:
    """All content of the namespace as a reader sees it."""
    memories = bank.memories("default", order="created_at")
    return (
        [(m.id, m.question, m.reason, m.state) for m in memories],
        [bank.prompt("default", m.id).prompt_VE.tolist() for m in memories],
        [bank.episode("default", m.id) for m in memories],
        [(job.id, job.question, job.state) for job in bank.jobs.list("default")],
        bank.uses("default"),
        [event.note for event in bank.events("default") if event.kind is not EventKind.KEY_ROTATED],
    )


def versions_of_tensors(bank: Bank) -> set[int | None]:
    tensors = bank.tensors
    return {version_of(tensors.get("default", digest)) for digest in tensors.digests("default")}


def status(bank: Bank) -> VaultStatus:
    (only,) = vault_status(bank)
    return only


def test_a_new_data_key_seals_everything_anew(bank: Bank, folder: Path) -> None:
    fill(bank)
    before = everything(bank)
    done = rotate_data(bank, "default")
    assert (done.version, done.retired, done.finished, done.left, done.tensors) == (2, (1,), True, (), 3)
    assert everything(bank) == before
    assert everything(encrypted_bank(bank.database, folder)) == before
    assert versions_of_tensors(bank) == {2}
    now = status(bank)
    assert (now.version, now.older, now.retired, now.readable, now.outdated) == (2, (), (1,), 0, 0)
    (event,) = bank.events("default", kind=EventKind.KEY_ROTATED)
    assert event.detail == {"key": "data", "from": [1], "to": 2}
    assert chain.verify(bank.database, "default", vault=bank.vault).broken is None
    assert not examine(bank).findings


def test_switched_on_for_a_bank_in_use(database: Database, folder: Path) -> None:
    plain = plain_bank(database, folder)
    fill(plain)
    before = everything(plain)
    bank = encrypted_bank(database, folder)
    assert status(bank).readable > 0
    done = rotate_data(bank, "default")
    assert (done.version, done.retired, done.finished, done.tensors) == (1, (), True, 3)
    now = status(bank)
    assert (now.version, now.sealed, now.readable, now.outdated) == (1, True, 0, 0)
    assert everything(bank)[:4] == before[:4]
    assert [use.question for use in bank.uses("default")] == [use.question for use in before[4]]
    assert versions_of_tensors(bank) == {1}
    bank.jobs.enqueue("default", "queued 0", task="math", model_id=MODEL.id, recipe=RECIPE)
    assert len(bank.jobs.list("default")) == len(before[3]), "the same experience is the same job, blinded or not"
    assert not examine(bank).findings
    with pytest.raises(StorageError):
        plain.memories("default")


def test_what_was_asked_before_encryption_is_the_same_job_before_and_after_the_rotation(
    database: Database, folder: Path
) -> None:
    asked = {"task": "math", "model_id": MODEL.id, "recipe": RECIPE}
    first, created = plain_bank(database, folder).jobs.enqueue("default", "asked twice", **asked)
    assert created
    bank = encrypted_bank(database, folder)
    for _ in range(2):
        again, created = bank.jobs.enqueue("default", "asked twice", **asked)
        assert (again.id, created) == (first.id, False)
        assert rotate_data(bank, "default").finished
    assert len(bank.jobs.list("default")) == 1


def test_a_memory_from_before_encryption_is_not_taken_in_again(database: Database, folder: Path) -> None:
    plain = plain_bank(database, folder)
    mine = learner(plain)("mine", unit(1, 0, 0, 0))
    item = Adopted(
        question="mine",
        task="math",
        prompt=plain.prompt("default", mine.id),
        keys=plain.keys("default", mine.id),
        model=MODEL,
        recipe=RECIPE,
        origin="pack",
    )
    bank = encrypted_bank(database, folder)
    for _ in range(2):
        assert bank.adopt("default", [item, item], actor="me") == [(mine.id, False)] * 2
        assert rotate_data(bank, "default").finished


def test_two_jobs_of_one_experience_do_not_stop_it(database: Database, folder: Path) -> None:
    """An older version queued it again when encryption was on: two jobs, and one name for both."""
    asked = {"task": "math", "model_id": MODEL.id, "recipe": RECIPE}
    first, _ = plain_bank(database, folder).jobs.enqueue("default", "asked twice", **asked)
    bank = encrypted_bank(database, folder)
    mine = JobRow.id == first.id
    with database.write() as session:
        name = session.scalars(select(JobRow.idempotency_key).where(mine)).one()
        session.execute(update(JobRow).where(mine).values(idempotency_key="sha256:away"))
    second, created = bank.jobs.enqueue("default", "asked twice", **asked)
    assert created
    with database.write() as session:
        session.execute(update(JobRow).where(mine).values(idempotency_key=name))
    assert rotate_data(bank, "default").finished
    assert status(bank).readable == 0
    assert [job.question for job in bank.jobs.list("default")] == ["asked twice", "asked twice"]
    again, created = bank.jobs.enqueue("default", "asked twice", **asked)
    assert (again.id, created) == (second.id, False)


def test_what_is_not_sealed_is_not_missed() -> None:
    """A look at every text column of the schema: new ones have to be sealed, or named here."""
    from sqlalchemy import JSON, Text

    from elm_agent.storage.sql.schema import Base, UtcDateTime, Words
    from elm_agent.storage.vault.sealed_columns import TABLES

    covered = {
        f"{table.row.__tablename__}.{name}"
        for table in TABLES
        for name in (*table.texts, *table.documents, *table.blinded)
    }
    readable = {
        "memories.origin",
        "memories.model",
        "memories.recipe",
        "memories.library_version",
        "jobs.recipe",
        "jobs.owner",
        "events.actor",
        "events.detail",
        "tombstones.actor",
        "exports.path",
        "namespaces.model_name",
        "namespaces.model_weights",
        "namespaces.model_tokenizer",
        "namespaces.model_template",
        "namespaces.created_by",
        "namespaces.moved_to",
    }
    free = {
        f"{name}.{column.name}"
        for name, table in Base.metadata.tables.items()
        for column in table.columns
        if isinstance(column.type, Text | Words | JSON) and not isinstance(column.type, UtcDateTime)
    }
    assert free - covered - readable == set()


def test_a_salt_is_sealed_with_its_note(bank: Bank, database: Database) -> None:
    """A short note could be guessed by its digest and a readable salt."""
    fill(bank, 1)
    with database.read() as session:
        events = session.scalars(select(EventRow).where(EventRow.note.is_not(None))).all()
    assert events
    assert all((event.salt or "").startswith("elm1:1:") for event in events)
    report = chain.verify(database, "default", vault=bank.vault)
    assert (report.broken, report.closed_notes) == (None, 0)
    report = chain.verify(database, "default")
    assert (report.broken, report.closed_notes) == (None, len(events)), "without the key the chain is whole, too"
    with database.write() as session:
        session.execute(update(EventRow).where(EventRow.note.is_not(None)).values(salt="0" * 32))
    assert chain.verify(database, "default", vault=bank.vault).broken is not None


def test_salts_that_an_older_version_left_readable_are_sealed(bank: Bank, database: Database) -> None:
    fill(bank, 1)
    noted = EventRow.note.is_not(None)
    with database.write() as session:
        for event in session.scalars(select(EventRow).where(noted)):
            assert event.salt is not None
            event.salt = bank.vault.open("default", event.salt)
    assert chain.verify(database, "default", vault=bank.vault).broken is None
    before = everything(bank)
    assert status(bank).readable > 0
    assert rotate_data(bank, "default").finished
    with database.read() as session:
        salts = session.scalars(select(EventRow.salt).where(noted)).all()
    assert all((salt or "").startswith("elm1:2:") for salt in salts)
    assert everything(bank) == before
    assert chain.verify(database, "default", vault=bank.vault).broken is None


def test_what_only_looks_sealed_to_a_careless_eye_is_sealed(database: Database, folder: Path) -> None:
    """SQLite takes upper for lower case unless it is told not to."""
    plain = plain_bank(database, folder)
    memory = learner(plain)("ELM1:1: in capitals", unit(1, 0, 0, 0))
    nothing = dict.fromkeys(("reason", "answer", "memory_answer", "zero_shot_answer"))
    plain.record_use(replace(use_of(memory.id, 0), question="Elm1:1:x", subject="HMAC-SHA256:ada", **nothing))
    bank = encrypted_bank(database, folder)
    assert rotate_data(bank, "default").finished
    assert status(bank).readable == 0
    with database.read() as session:
        questions = [*session.scalars(select(MemoryRow.question)), *session.scalars(select(UseRow.question))]
        assert all(question.startswith("elm1:1:") for question in questions)
        assert session.scalars(select(UseRow.subject)).one() == bank.vault.blind("default", "HMAC-SHA256:ada")
    assert bank.memory("default", memory.id).question == "ELM1:1: in capitals"


def test_a_killed_rotation_goes_on(bank: Bank, database: Database, folder: Path) -> None:
    fill(bank, 4)
    before = everything(bank)
    steps = ("rotate.tensor_durable", "rotate.before_commit", "rotate.deleted", "rotate.committed")
    for step in steps:
        process = encrypted_bank(database, folder)

        def stop(name: str, _detail: dict[str, Any], step: str = step) -> None:
            if name == step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            rotate_data(process, "default", observe=stop)
        assert everything(bank) == before
        assert everything(encrypted_bank(database, folder)) == before
    done = rotate_data(bank, "default")
    assert (done.version, done.finished) == (2, True)
    assert everything(bank) == before


@pytest.mark.parametrize("hours", [0, 2])
def test_the_next_rotation_deletes_what_a_killed_one_left(bank: Bank, folder: Path, hours: int) -> None:
    """But not what is so young that somebody may be about to name it."""
    fill(bank)
    old = set(bank.tensors.digests("default"))
    for path in folder.rglob("*.safetensors"):
        os.utime(path, (time.time() - hours * 3600,) * 2)

    def stop(name: str, _detail: dict[str, Any]) -> None:
        if name == "rotate.committed" and set(bank.tensors.digests("default")) > old:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rotate_data(bank, "default", observe=stop)
    young = bank.tensors.put("default", b"about to be named")
    assert rotate_data(bank, "default").finished
    named = {memory.tensor_digest for memory in bank.memories("default")}
    assert not named & old
    assert set(bank.tensors.digests("default")) == named | {young} | (old if hours == 0 else set())


def test_agents_go_on_meanwhile(bank: Bank, database: Database, folder: Path) -> None:
    """Another process learns and reads all the time, while the key changes three times."""
    fill(bank, 3)
    agent, stop, problems, made = encrypted_bank(database, folder), threading.Event(), [], list[str]()

    def work() -> None:
        n = 100
        learn = learner(agent)
        while not stop.is_set() and n < 130:
            try:
                made.append(learn(f"question {n}", unit(1, n, 0, 0)).id)
                for memory in agent.memories("default"):
                    agent.prompt("default", memory.id)
                    agent.episode("default", memory.id)
            except Exception as error:  # noqa: BLE001 - whatever it is, the test tells of it
                problems.append(error)
                return
            n += 1

    cancel_jobs(bank)
    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(3):
        rotate_data(bank, "default")
    stop.set()
    thread.join()
    assert problems == []
    final = rotate_data(bank, "default")
    assert final.finished
    assert (status(bank).readable, status(bank).outdated) == (0, 0)
    assert versions_of_tensors(bank) == {final.version}
    assert {memory.id for memory in bank.memories("default")} >= set(made)
    assert not examine(bank).findings


def test_a_process_with_the_old_key_in_mind_loses_nothing(bank: Bank, database: Database, folder: Path) -> None:
    stale = encrypted_bank(database, folder)
    fill(bank)
    cancel_jobs(bank)
    rotate_data(bank, "default")
    late = learner(stale)("written late", unit(0, 1, 0, 0))
    assert status(bank).outdated == 4, "the memory, its episode, its job, and the proof in the event that made it"
    assert bank.memory("default", late.id).question == "written late"
    again = rotate_data(bank, "default")
    assert again.finished
    assert status(bank).outdated == 0


def test_what_cannot_be_opened_is_left_and_named(bank: Bank, database: Database) -> None:
    ids = fill(bank)
    with database.write() as session:
        good = session.get_one(MemoryRow, ("default", ids[1])).question
        session.get_one(MemoryRow, ("default", ids[1])).question = good[:-2] + ("AA" if good[-2:] != "AA" else "BB")
    done = rotate_data(bank, "default")
    assert not done.finished
    assert [name for name, _ in done.left] == [f"memories {ids[1]}"]
    assert status(bank).older == (1,), "the old key stays while something needs it"
    with database.write() as session:
        session.execute(update(MemoryRow).where(MemoryRow.id == ids[1]).values(question=good))
    assert rotate_data(bank, "default").finished
    assert bank.memory("default", ids[1]).question == "question 1"


def test_a_new_master_key_wraps_anew(bank: Bank, database: Database, folder: Path) -> None:
    bank.bind("other", MODEL)
    fill(bank)
    before = everything(bank)
    done = rotate_master(bank, to=masters(SECOND))
    assert {entry.namespace: len(entry.before) for entry in done} == {"default": 1, "other": 1}
    assert everything(bank) == before, "a process that has the keys in memory does not notice"
    assert everything(encrypted_bank(database, folder, SECOND)) == before
    with pytest.raises(VaultLocked, match="was wrapped by master key"):
        encrypted_bank(database, folder, FIRST)
    again = rotate_master(encrypted_bank(database, folder, SECOND, FIRST))
    assert all(entry.before == () for entry in again), "the second time there is nothing to do"
    kinds = [event.detail for event in bank.events("default", kind=EventKind.KEY_ROTATED)]
    assert kinds == [{"key": "master", "from": [masters(FIRST).current().id], "to": masters(SECOND).current().id}]


def test_the_first_of_two_keys_takes_over(bank: Bank, database: Database, folder: Path) -> None:
    fill(bank)
    both = encrypted_bank(database, folder, SECOND, FIRST)
    before = everything(both)
    rotate_master(both)
    assert everything(encrypted_bank(database, folder, SECOND)) == before


def test_a_half_done_change_of_the_master_key_is_finished(bank: Bank, database: Database, folder: Path) -> None:
    bank.bind("other", MODEL)
    ids = fill(bank)

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rotate_master(bank, to=masters(SECOND), progress=stop)
    rotate_master(bank, to=masters(SECOND))
    assert encrypted_bank(database, folder, SECOND).memory("default", ids[0]).question == "question 0"
    assert {master for entry in vault_status(bank) for master in entry.master_ids} == {masters(SECOND).current().id}


def test_rotation_needs_a_key(database: Database, folder: Path) -> None:
    plain = plain_bank(database, folder)
    with pytest.raises(InputError, match="encryption new-key"):
        rotate_data(plain, "default")
    encrypted_bank(database, folder)
    locked = Bank(database, LocalTensors(folder), index="exact", vault=LockedVault())
    with pytest.raises(VaultLocked):
        rotate_master(locked)
    assert status(locked).problem == "no key was given"


def test_a_purge_in_the_middle_leaves_nothing(bank: Bank, database: Database, folder: Path) -> None:
    ids = fill(bank)
    other = encrypted_bank(database, folder)

    def purge(name: str, detail: dict[str, Any]) -> None:
        if name == "rotate.tensor_durable" and detail["memory_id"] == ids[1]:
            other.purge("default", [ids[1]], actor="me", reason=None)

    rotate_data(bank, "default", observe=purge)
    with database.read() as session:
        named = set(session.scalars(select(MemoryRow.tensor_digest)))
    assert set(bank.tensors.digests("default")) == named
    assert len(named) == 2


def test_a_memory_whose_tensor_is_gone_does_not_stop_it(bank: Bank) -> None:
    ids = fill(bank)
    bank.tensors.delete("default", bank.memory("default", ids[1]).tensor_digest)
    done = rotate_data(bank, "default")
    assert (done.finished, done.tensors) == (True, 2)


def test_progress_comes_to_its_end(bank: Bank) -> None:
    fill(bank)
    told: list[tuple[int, int]] = []
    rotate_data(bank, "default", progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    assert torch.tensor([done for done, _ in told]).diff().min() >= 0
