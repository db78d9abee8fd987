"""Break a bank in every way that can be named; the doctor finds it, mends it, and then finds nothing."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch
from bank_helpers import MODEL, RECIPE, Learn, learner, trained, unit
from sqlalchemy import delete, text, update
from sqlalchemy.orm import Session

from elm_agent.errors import LeaseLost
from elm_agent.records import EventKind, JobState, KeyKind, MemoryRecord, MemoryState, utcnow
from elm_agent.softprompt import SoftPrompt, to_bytes
from elm_agent.storage.adopt import Adopted
from elm_agent.storage.bank import Bank
from elm_agent.storage.health import indexes as audit_index
from elm_agent.storage.health.doctor import FindingKind, Report, examine
from elm_agent.storage.indexes.chroma import ChromaIndex
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.sql import rows
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import EpisodeRow, EventRow, JobRow, KeyRow, MemoryRow, OutboxRow, TombstoneRow
from elm_agent.storage.tensors.cache import TensorCache
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.storage.tensors.remote import FsspecTensors

LATER = timedelta(hours=2)


@pytest.fixture
def pair(learn: Learn) -> tuple[MemoryRecord, MemoryRecord]:
    return learn("one", unit(1, 0, 0, 0), kv=unit(1, 1)), learn("two", unit(0, 1, 0, 0), kv=unit(1, -1))


def kinds(report: Report) -> list[FindingKind]:
    return [finding.kind for finding in report.findings]


def mended(bank: Bank, *expected: FindingKind, **options: object) -> Report:
    """The doctor sees ``expected`` twice, mends it once, and then sees nothing."""
    first = examine(bank, **options)
    assert kinds(first) == list(expected)
    assert all(finding.action is None for finding in first.findings), "looking changes nothing"
    second = examine(bank, repair=True, **options)
    assert kinds(second) == list(expected)
    assert second.left == ()
    assert examine(bank, **options).clean
    return second


def file_of(bank: Bank, memory: MemoryRecord) -> Path:
    assert isinstance(bank.tensors, LocalTensors)
    return bank.tensors.path(memory.namespace, memory.tensor_digest)


@contextmanager
def without_foreign_keys(database: Database) -> Iterator[Session]:
    """A session that may do what no ordinary one can."""
    with database.engine.connect() as connection:
        if database.sqlite:
            connection.connection.dbapi_connection.execute("PRAGMA foreign_keys = OFF")
        with Session(connection) as session, session.begin():
            if not database.sqlite:
                session.execute(text("SET LOCAL session_replication_role = replica"))
            yield session
        connection.invalidate()


@pytest.mark.usefixtures("pair")
def test_a_healthy_bank(bank: Bank) -> None:
    report = examine(bank, repair=True)
    assert report.clean
    assert report.skipped == ()
    assert report.checked["memories"] == report.checked["tensors"] == report.checked["jobs"] == 2


def test_an_empty_bank(bank: Bank) -> None:
    assert examine(bank).clean


def test_a_bank_in_use_never_looks_broken(bank: Bank, learn: Learn) -> None:
    with ThreadPoolExecutor(1) as pool:
        learning = pool.submit(lambda: [learn(f"{n} what", unit(1, n, 0, 0)) for n in range(20)])
        reports = [examine(bank, repair=True)]
        while not learning.done():
            reports.append(examine(bank, repair=True))
        learning.result()
    assert [report.findings for report in reports] == [()] * len(reports)
    assert len([bank.prompt("default", memory.id) for memory in bank.memories("default")]) == 20


# --- tensors ----------------------------------------------------------------------------------------------


def test_a_missing_tensor_is_quarantined_with_an_event(bank: Bank, pair: tuple[MemoryRecord, MemoryRecord]) -> None:
    lost, kept = pair
    data = file_of(bank, lost).read_bytes()
    file_of(bank, lost).unlink()
    report = mended(bank, FindingKind.MISSING_TENSOR)
    assert report.findings[0].subject == lost.id
    assert bank.memory("default", lost.id).state is MemoryState.QUARANTINED
    last = bank.events("default", lost.id)[-1]
    assert (last.kind, last.actor) == (EventKind.QUARANTINED, "doctor")
    assert [hit.memory_id for hit in bank.nearest("default", KeyKind.INPUT, unit(1, 0, 0, 0), 5)] == [kept.id]
    bank.tensors.put("default", data)
    bank.transition("default", lost.id, MemoryState.ACTIVE, actor="test", reason="found in a backup")
    assert examine(bank).clean


@pytest.mark.parametrize("damage", ["truncated", "empty", "one bit", "another tensor"])
def test_an_altered_tensor_is_quarantined(bank: Bank, pair: tuple[MemoryRecord, MemoryRecord], damage: str) -> None:
    file = file_of(bank, pair[1])
    data = file.read_bytes()
    bit = data[:-1] + bytes([data[-1] ^ 1])
    other = to_bytes(torch.zeros(2, 4))
    file.write_bytes({"truncated": data[:-5], "empty": b"", "one bit": bit, "another tensor": other}[damage])
    assert mended(bank, FindingKind.ALTERED_TENSOR).findings[0].subject == pair[1].id


@pytest.mark.parametrize("columns", [{"virtual_tokens": 3}, {"tensor_digest": "sha256:../../../etc/passwd"}])
def test_a_record_that_says_something_else_is_quarantined(
    bank: Bank, pair: tuple[MemoryRecord, MemoryRecord], columns: dict[str, object]
) -> None:
    with bank.database.write() as session:
        session.execute(update(MemoryRow).where(MemoryRow.id == pair[0].id).values(columns))
    assert examine(bank, repair=True).findings[0].kind is FindingKind.ALTERED_TENSOR
    assert bank.memory("default", pair[0].id).state is MemoryState.QUARANTINED


def test_a_folder_that_is_not_mounted_costs_nothing(bank: Bank, pair: tuple[MemoryRecord, MemoryRecord]) -> None:
    for memory in pair:
        file_of(bank, memory).unlink()
    report = examine(bank, repair=True)
    assert kinds(report) == [FindingKind.MISSING_TENSOR] * 2
    assert len(report.left) == 2
    assert "is the right folder mounted?" in report.findings[0].problem
    assert all(memory.state is MemoryState.ACTIVE for memory in bank.memories("default"))


@pytest.mark.usefixtures("pair")
def test_an_orphan_is_collected_once_it_cannot_be_in_flight(bank: Bank) -> None:
    digest = bank.tensors.put("default", b"never published")
    young = examine(bank, repair=True)
    assert young.clean
    assert young.checked["tensors in flight"] == 1
    assert digest in set(bank.tensors.digests("default"))
    report = mended(bank, FindingKind.ORPHAN_TENSOR, now=utcnow() + LATER)
    assert report.findings[0].subject == digest
    assert len(list(bank.tensors.digests("default"))) == 2


@pytest.mark.usefixtures("pair")
def test_left_temporary_files_are_swept(bank: Bank) -> None:
    folder = bank.tensors.directory / "default" / "ab"
    folder.mkdir(exist_ok=True)
    (folder / "x.part").write_bytes(b"half")
    assert examine(bank, repair=True).clean
    mended(bank, FindingKind.TEMPORARY_FILE, now=utcnow() + LATER)
    assert not (folder / "x.part").exists()


# --- jobs -------------------------------------------------------------------------------------------------


def test_a_stuck_job_is_queued_again_and_its_worker_fenced_out(bank: Bank) -> None:
    job, _ = bank.jobs.enqueue("default", "one", task="math", model_id=MODEL.id, recipe=RECIPE)
    lease = bank.jobs.claim("paused", lease_seconds=60)
    assert lease is not None
    assert examine(bank, repair=True).clean, "its lease is running"
    report = mended(bank, FindingKind.STUCK_JOB, now=utcnow() + LATER)
    assert (report.findings[0].subject, report.findings[0].action) == (job.id, "now queued")
    with pytest.raises(LeaseLost):
        bank.publish(
            lease,
            trained(unit(1, 0, 0, 0)),
            task="math",
            model=MODEL,
            recipe=RECIPE,
            state=MemoryState.ACTIVE,
            reason=None,
        )
    # what it had stored is an orphan now, and goes when it is old
    mended(bank, FindingKind.ORPHAN_TENSOR, now=utcnow() + LATER)


def test_a_stuck_job_without_attempts_left_has_failed(bank: Bank) -> None:
    job, _ = bank.jobs.enqueue("default", "one", task="math", model_id=MODEL.id, recipe=RECIPE, max_attempts=1)
    assert bank.jobs.claim("dead", lease_seconds=60) is not None
    mended(bank, FindingKind.STUCK_JOB, now=utcnow() + LATER)
    assert bank.jobs.get(job.namespace, job.id).state is JobState.FAILED


# --- rows -------------------------------------------------------------------------------------------------


def test_a_memory_that_was_deleted_by_hand(bank: Bank, pair: tuple[MemoryRecord, MemoryRecord]) -> None:
    gone = pair[0]
    with without_foreign_keys(bank.database) as session:
        session.execute(delete(MemoryRow).where(MemoryRow.id == gone.id))
    # the job, two keys, two lines of index work, the episode
    mended(bank, *[FindingKind.DANGLING_ROW] * 6)
    assert gone.job_id is not None
    assert bank.jobs.get("default", gone.job_id).state is JobState.FAILED
    bank.jobs.retry("default", gone.job_id)
    with bank.database.read() as session:
        assert session.get(EpisodeRow, ("default", gone.episode_id)) is None
        assert session.get(EpisodeRow, ("default", pair[1].episode_id)) is not None


@pytest.mark.parametrize("what", ["episode", "input key", "short key", "long key"])
def test_an_incomplete_memory_is_quarantined(bank: Bank, pair: tuple[MemoryRecord, MemoryRecord], what: str) -> None:
    memory = pair[0]
    key = (KeyRow.memory_id == memory.id) & (KeyRow.kind == KeyKind.INPUT.value)
    statement = {
        "episode": delete(EpisodeRow).where(EpisodeRow.id == memory.episode_id),
        "input key": delete(KeyRow).where(key),
        "short key": update(KeyRow).where(key).values(vector=b"\0\0\0"),
        "long key": update(KeyRow).where(key).values(vector=b"\0\0\x80\x40" * 4),
    }[what]
    with without_foreign_keys(bank.database) as session:
        session.execute(statement)
    mended(bank, FindingKind.DANGLING_ROW)
    assert bank.memory("default", memory.id).state is MemoryState.QUARANTINED
    assert bank.memory("default", pair[1].id).state is MemoryState.ACTIVE


# --- the durable index ------------------------------------------------------------------------------------


@pytest.fixture
def indexed(database: Database, tmp_path: Path) -> Iterator[Bank]:
    """A bank that Chroma serves, with three memories in two namespaces, all fed."""
    bank = Bank(
        database, LocalTensors(tmp_path / "tensors"), index="durable", durable=ChromaIndex(tmp_path / "chroma")
    )
    for namespace in ("default", "other"):
        bank.bind(namespace, MODEL)
    learn = learner(bank)
    learn("one", unit(1, 0, 0, 0), kv=unit(1, 1))
    learn("two", unit(0, 1, 0, 0), kv=unit(1, -1))
    learn("one", unit(1, 0, 0, 0), namespace="other")
    yield bank
    bank.close()


def test_a_fed_index_is_in_order(indexed: Bank) -> None:
    report = examine(indexed)
    assert report.clean
    assert report.checked["index entries"] == 5


@pytest.mark.parametrize("rebuild_above", [0, 100], ids=["wiped", "one by one"])
def test_wrong_entries_are_mended(indexed: Bank, monkeypatch: pytest.MonkeyPatch, rebuild_above: int) -> None:
    monkeypatch.setattr(audit_index, "REBUILD_ABOVE", rebuild_above)
    index = indexed.durable
    assert index is not None
    one, two = (memory.id for memory in indexed.memories("default", order="created_at"))
    index.apply("default", KeyKind.INPUT, [], [one])
    index.apply("default", KeyKind.KV, [], [one, two])
    index.apply("other", KeyKind.INPUT, learner_entry("mem_never"), [])
    mended(indexed, *[FindingKind.MISSING_ENTRY] * 3, FindingKind.SURPLUS_ENTRY)
    assert index.ids("default", KeyKind.INPUT) == index.ids("default", KeyKind.KV) == {one, two}
    assert "mem_never" not in index.ids("other", KeyKind.INPUT)


def test_an_evicted_memory_that_is_still_indexed(indexed: Bank) -> None:
    index = indexed.durable
    assert index is not None
    one = indexed.memories("default", order="created_at")[0].id
    indexed.transition("default", one, MemoryState.RETIRED, actor="test", reason=None)
    index.apply("default", KeyKind.INPUT, learner_entry(one), [])
    mended(indexed, FindingKind.SURPLUS_ENTRY)
    assert one not in index.ids("default", KeyKind.INPUT)


def test_what_is_still_to_be_fed_is_not_wrong(indexed: Bank, database: Database, tmp_path: Path) -> None:
    other = Bank(database, LocalTensors(tmp_path / "tensors"), index="exact")  # a worker, which never opens Chroma
    learner(other)("three", unit(0, 0, 1, 0), kv=unit(0, 1))
    report = examine(indexed)
    assert report.clean
    assert report.checked["index changes to feed"] == 2
    assert examine(indexed, repair=True).checked["index changes to feed"] == 0


def test_a_folder_that_was_lost_is_fed_again(indexed: Bank) -> None:
    assert indexed.durable is not None
    indexed.durable.wipe()
    assert examine(indexed, repair=True).clean
    assert len(indexed.durable.ids("default", KeyKind.INPUT)) == 2


def test_an_index_of_another_process_is_skipped_and_said(indexed: Bank, database: Database, tmp_path: Path) -> None:
    chroma = ChromaIndex(tmp_path / "chroma")
    report = examine(Bank(database, LocalTensors(tmp_path / "tensors"), index="durable", durable=chroma), repair=True)
    assert report.clean
    assert "held by another process" in report.skipped[0]
    assert len(indexed.memories("default")) == 2


def learner_entry(memory_id: str) -> list[object]:
    from elm_agent.protocols import IndexEntry

    return [IndexEntry(memory_id, unit(0, 0, 0, 1))]


def test_every_table_is_covered() -> None:
    """A new table needs a thought here: can its rows dangle?"""
    from elm_agent.storage.sql.schema import Base

    thought_of = {MemoryRow, EpisodeRow, KeyRow, JobRow, OutboxRow}
    names = {table.__tablename__ for table in thought_of} | {"uses", "events", "namespaces", "index_watermarks"}
    names |= {"tombstones", "exports", "vault_keys"}  # stay when memories go
    names |= {"calibrations"}  # belong to a namespace, not to its memories
    assert set(Base.metadata.tables) == names


# --- the ledger and its witness ---------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["key", "question", "rollouts", "model", "prompt", "its own event"])
def test_a_memory_that_was_changed_behind_the_ledger(
    bank: Bank, pair: tuple[MemoryRecord, MemoryRecord], what: str
) -> None:
    memory = pair[0]
    of_key = (KeyRow.memory_id == memory.id) & (KeyRow.kind == KeyKind.KV.value)
    of_memory, of_episode = MemoryRow.id == memory.id, EpisodeRow.id == memory.episode_id
    other = bank.tensors.put("default", to_bytes(torch.zeros(2, 4)))
    statement = {
        "key": update(KeyRow).where(of_key).values(vector=rows.pack(unit(1, 0))),
        "question": update(MemoryRow).where(of_memory).values(question="another one"),
        "rollouts": update(EpisodeRow).where(of_episode).values(rollouts=[]),
        "model": update(MemoryRow).where(of_memory).values(recipe={"steps": 1}),
        "prompt": update(MemoryRow).where(of_memory).values(tensor_digest=other),
        "its own event": update(EventRow).where(EventRow.note.startswith("record ")).values(note="record sha256:0"),
    }[what]
    with bank.database.write() as session:
        session.execute(statement)
    report = examine(bank, repair=True)
    found = {finding.subject for finding in report.findings if finding.kind is FindingKind.ALTERED_RECORD}
    if what == "its own event":
        assert found == {one.id for one in pair}
        assert FindingKind.BROKEN_CHAIN in kinds(report)
    else:
        assert found == {memory.id}
        assert bank.memory("default", pair[1].id).state is MemoryState.ACTIVE


@pytest.mark.parametrize("columns", [{"state": "retired"}, {"pinned": True}])
def test_a_state_that_the_ledger_does_not_know(
    bank: Bank, pair: tuple[MemoryRecord, MemoryRecord], columns: dict[str, object]
) -> None:
    with bank.database.write() as session:
        session.execute(update(MemoryRow).where(MemoryRow.id == pair[0].id).values(columns))
    assert kinds(examine(bank)) == [FindingKind.WRONG_STATE]


@pytest.mark.parametrize("known", [None, datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=UTC)])
def test_a_horizon_that_the_ledger_does_not_know_is_put_back(
    bank: Bank, pair: tuple[MemoryRecord, MemoryRecord], known: datetime | None
) -> None:
    memory = pair[0].id
    bank.set_validity("default", memory, known, actor="user")
    assert examine(bank).clean
    with bank.database.write() as session:
        later = datetime(2040, 1, 1, tzinfo=UTC)
        session.execute(update(MemoryRow).where(MemoryRow.id == memory).values(valid_until=later))
    mended(bank, FindingKind.WRONG_VALIDITY)
    now = bank.memory("default", memory)
    assert (now.valid_until, now.state) == (known, MemoryState.ACTIVE)


def test_the_horizon_of_an_imported_memory_is_in_its_event(bank: Bank, learn: Learn) -> None:
    made = learn("one", unit(1, 0, 0, 0))
    until = datetime(2030, 1, 2, tzinfo=timezone(timedelta(hours=5)))
    adopted = Adopted(
        question="another",
        task=made.task,
        prompt=SoftPrompt(torch.ones(2, 4)),
        keys=bank.keys("default", made.id),
        model=made.model,
        recipe=made.recipe,
        origin="pack:test",
        valid_until=until,
    )
    ((memory_id, _),) = bank.adopt("default", [adopted], actor="user")
    assert examine(bank).clean
    with bank.database.write() as session:
        session.execute(update(MemoryRow).where(MemoryRow.id == memory_id).values(valid_until=None))
    mended(bank, FindingKind.WRONG_VALIDITY)
    assert bank.memory("default", memory_id).valid_until == until


@pytest.mark.usefixtures("pair")
def test_everything_is_counted(bank: Bank) -> None:
    checked = examine(bank).checked
    assert {checked[what] for what in ("memories", "records proven", "jobs read", "tensors", "jobs")} == {2}
    assert (checked["events"], checked["namespaces"], checked["database"]) == (6, 1, 1)


# --- purges -----------------------------------------------------------------------------------------------


def test_an_interrupted_purge_is_finished(bank: Bank, pair: tuple[MemoryRecord, MemoryRecord]) -> None:
    def stop(step: str, _detail: dict[str, object]) -> None:
        if step == "purge.committed":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bank.purge("default", [pair[0].id], actor="test", reason=None, observe=stop)
    young = examine(bank)
    assert kinds(young) == []
    assert young.checked["purges in flight"] == 1
    later = utcnow() + LATER
    assert kinds(examine(bank, now=later)) == [FindingKind.UNFINISHED_PURGE, FindingKind.ORPHAN_TENSOR]
    assert examine(bank, repair=True, now=later).left == ()
    assert examine(bank, now=later).clean
    assert not file_of(bank, pair[0]).exists()


def test_a_purged_memory_that_came_back(bank: Bank, pair: tuple[MemoryRecord, MemoryRecord]) -> None:
    with bank.database.write() as session:
        stone = {"revision": 1, "actor": "test", "purged_at": utcnow()}
        session.add(TombstoneRow(namespace="default", memory_id=pair[0].id, **stone))
    report = examine(bank, repair=True)
    assert FindingKind.UNPURGED in kinds(report)
    assert report.left == ()
    assert [memory.id for memory in bank.memories("default")] == [pair[1].id]
    assert examine(bank).clean


# --- the database, files beside it, banks elsewhere -------------------------------------------------------


def test_a_column_that_is_gone(bank: Bank) -> None:
    with bank.database.write() as session:
        session.execute(text("ALTER TABLE exports DROP COLUMN path"))
    (finding,) = examine(bank, repair=True).findings
    assert (finding.kind, finding.subject, finding.action) == (FindingKind.OTHER_SCHEMA, "exports", None)


def test_a_row_that_cannot_be_read(bank: Bank, pair: tuple[MemoryRecord, MemoryRecord]) -> None:
    with bank.database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == pair[0].job_id).values(recipe={"no": "recipe"}))
        session.execute(update(MemoryRow).where(MemoryRow.id == pair[1].id).values(virtual_tokens=3))
    assert set(kinds(examine(bank))) == {FindingKind.DAMAGED_ROW, FindingKind.ALTERED_TENSOR}


def test_snapshots_and_cached_copies(database: Database, tmp_path: Path) -> None:
    cache = TensorCache(tmp_path / "cache", max_bytes=10**6, max_age_seconds=10**6)
    tensors = FsspecTensors(f"file://{tmp_path / 'remote'}", cache=cache)
    bank = Bank(database, tensors, index="exact", exact=ExactIndex(tmp_path / "index", keep_above=1))
    bank.bind("default", MODEL)
    for n in range(4):
        memory = learner(bank)(f"{n} what", unit(1, n, 0, 0))
        bank.prompt("default", memory.id)
    bank.nearest("default", KeyKind.INPUT, unit(1, 0, 0, 0), 1)
    report = examine(bank)
    assert (report.clean, report.checked["snapshots"], report.checked["cached tensors"]) == (True, 1, 4)
    (keys,) = (tmp_path / "index").rglob("keys.npy")
    keys.write_bytes(keys.read_bytes()[:-1] + b"\x55")
    cache.add("default", "sha256:" + "a" * 64, b"of another machine")
    mended(bank, FindingKind.SURPLUS_COPY, FindingKind.DAMAGED_SNAPSHOT)
    bank.close()


def test_a_bank_that_moved_is_only_looked_at(bank: Bank, pair: tuple[MemoryRecord, MemoryRecord]) -> None:
    file_of(bank, pair[0]).unlink()
    with bank.database.write() as session:
        session.execute(text("UPDATE namespaces SET moved_to = 'sqlite:///elsewhere'"))
    report = examine(bank, repair=True)
    assert len(report.left) == 1
    assert "it was moved to sqlite:///elsewhere" in report.skipped[0]
