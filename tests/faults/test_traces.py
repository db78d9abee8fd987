"""What was purged is in no store, file, cache or dump: its texts and its numbers are searched for byte by byte."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest
from postgres import fresh_database, server_binaries
from servers import pgvector_binaries
from sqlalchemy import create_engine, make_url, text
from warm_chroma import warm_chroma

from elm_agent.bench.filling import use_of
from elm_agent.protocols import TensorStore
from elm_agent.records import KeyKind, MemoryState, Recipe, Route, UseRecord
from elm_agent.storage.bank import Bank
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.indexes.feed import FedIndex
from elm_agent.storage.indexes.pgvector import PgvectorIndex
from elm_agent.storage.packs.transfer import export_pack
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.cache import TensorCache
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.storage.tensors.remote import FsspecTensors
from elm_agent.storage.vault.opening import open_vault
from elm_agent.testing.doubles import FakeTrainer, fake_fingerprint, key_of

MODEL = fake_fingerprint()
RECIPE = Recipe(virtual_tokens=3, rollouts=2, steps=2)
SPACE = "default"
OTHERS = 30  # memories that stay, so that pages are shared and files have something to keep


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bank keeps everything: ``home`` with its files, a database, and objects of a store if it has one."""

    kind: str
    home: Path
    database_url: str
    objects: str | None = None
    endpoint: str = ""

    def open(self) -> Bank:
        database = Database.open(self.database_url)
        durable: FedIndex | None = None
        if self.kind == "chroma":
            durable = warm_chroma(self.home / "chroma")
        elif self.kind == "pgvector":
            durable = PgvectorIndex(database)
        return Bank(
            database,
            self.tensors(),
            index="durable" if durable else "exact",
            durable=durable,
            exact=ExactIndex(self.home / "index", keep_above=3),
            vault=open_vault(database, function=(lambda: b"k" * 32) if self.kind == "sealed" else None),
        )

    def tensors(self) -> TensorStore:
        if self.objects is None:
            return LocalTensors(self.home / "tensors")
        cache = TensorCache(self.home / "cache", max_bytes=1 << 30, max_age_seconds=3600)
        return FsspecTensors(self.objects, options={"endpoint_url": self.endpoint}, cache=cache)

    def stores(self) -> Iterator[tuple[str, bytes]]:
        """Every file under ``home``, every object; of PostgreSQL a dump, and pgvector's own files as they are."""
        for path in self.home.rglob("*"):
            if path.is_file():
                yield str(path.relative_to(self.home)), path.read_bytes()
        if self.objects is not None:
            yield from self._kept_objects(self.objects)
        if self.database_url.startswith("postgresql"):
            url = make_url(self.database_url).set(drivername="postgresql").render_as_string(hide_password=False)
            binaries = pgvector_binaries() if self.kind == "pgvector" else server_binaries()
            dump = subprocess.run([binaries / "pg_dump", url], capture_output=True, check=True)
            yield "pg_dump", dump.stdout
        if self.kind == "pgvector":
            yield from self.index_files()

    def _kept_objects(self, url: str) -> Iterator[tuple[str, bytes]]:
        store = fsspec.filesystem(
            "s3", endpoint_url=self.endpoint, skip_instance_cache=True, use_listings_cache=False
        )
        for name in store.find(url):
            yield name, store.cat_file(name)

    def index_files(self) -> list[tuple[str, bytes]]:
        """The server's own files of the index: tables, graphs, what was too long for a row."""
        engine = create_engine(self.database_url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("CHECKPOINT"))
            files = [(name, bytes(data)) for name, data in connection.execute(text(_INDEX_FILES))]
        engine.dispose()
        return files


_INDEX_FILES = """
SELECT relname, pg_read_binary_file(pg_relation_filepath(oid)) FROM pg_class
WHERE pg_relation_filepath(oid) IS NOT NULL AND (
    relnamespace = to_regnamespace('elm_index')
    OR oid IN (SELECT reltoastrelid FROM pg_class WHERE relnamespace = to_regnamespace('elm_index')))
"""


@pytest.fixture(
    params=[
        *(f"sqlite-{kind}" for kind in ("exact", "chroma", "sealed")),
        *(
            pytest.param(f"postgres-{kind}", marks=pytest.mark.postgres)
            for kind in ("exact", "chroma", "sealed", "pgvector")
        ),
        pytest.param("sqlite-s3", marks=pytest.mark.s3),
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    database, kind = request.param.split("-")
    url, objects = f"sqlite:///{tmp_path / 'bank.sqlite'}", {}
    if kind == "s3":
        server = request.getfixturevalue("s3_server")
        objects = {"objects": server.new_url(), "endpoint": server.endpoint}
    if database == "sqlite":
        yield Place(kind, tmp_path, url, **objects)
        return
    server = request.getfixturevalue("pgvector_server" if kind == "pgvector" else "postgres_server")
    with fresh_database(server) as url:
        yield Place(kind, tmp_path, url)


def learn(bank: Bank, question: str, *, subject: str | None = None, word: str = "plain") -> str:
    """A memory whose every text holds ``word``; its id."""
    bank.jobs.enqueue(SPACE, question, task="math", model_id=MODEL.id, recipe=RECIPE, subject=subject)
    lease = bank.jobs.claim("worker", lease_seconds=60)
    assert lease is not None
    bank.jobs.heartbeat(lease, lease_seconds=60, progress={"majority_answer": f"{word} progress"})
    made = FakeTrainer(majority_answer=f"{word} vote").train(
        question, recipe=RECIPE, seed=hash(question) % 2**32, observe=lambda *_: None, cancelled=lambda: False
    )
    rollouts = tuple(dataclasses.replace(one, text=f"{word} rollout {one.index}") for one in made.rollouts)
    made = dataclasses.replace(made, rollouts=rollouts)
    state: dict[str, Any] = {"state": MemoryState.ACTIVE, "reason": f"{word} gate"}
    memory_id = bank.publish(lease, made, task="math", model=MODEL, recipe=RECIPE, **state).id
    bank.record_use(use(memory_id, word, subject))
    return memory_id


def use(memory_id: str, word: str, subject: str | None) -> UseRecord:
    return use_of(
        SPACE,
        memory_id,
        subject=subject,
        question=f"{word} asked",
        route=Route.FAILED_MEMORY,
        reason=f"{word} failure",
        answer=f"{word} answer",
        memory_answer=f"{word} memory answer",
        zero_shot_answer=f"{word} zero",
    )


def numbers(bank: Bank, memory_id: str) -> list[bytes]:
    """Raw float32 of both keys and of the prompt, whole and in pieces: a file may hold them in pages."""
    keys, prompt = bank.keys(SPACE, memory_id), bank.prompt(SPACE, memory_id).prompt_VE.numpy()
    assert keys.kv is not None
    whole = [keys.input.tobytes(), keys.kv.tobytes(), prompt.tobytes()]
    return [data[start : start + 32] for data in whole for start in range(0, len(data) - 31, 32)]


def found(place: Place, wanted: list[bytes]) -> list[str]:
    """Where any of ``wanted`` is, as raw bytes or, as dumps have them, in hexadecimal."""
    return [
        f"{name}: {trace[:40]!r}"
        for name, data in place.stores()
        for trace in wanted
        if trace in data or trace.hex().encode() in data
    ]


def warm(bank: Bank) -> None:
    """Let every cache and snapshot have everything."""
    for kind in KeyKind:
        for hit in bank.nearest(SPACE, kind, key_of("what is it", kind), 100):
            bank.prompt(SPACE, hit.memory_id)


def test_a_purge_leaves_no_trace(place: Place) -> None:
    with closing(place.open()) as bank:
        bank.bind(SPACE, MODEL)
        for n in range(OTHERS):
            learn(bank, f"What is {n} and {n}?")
        gone = learn(bank, "What is zyzzyva?", subject="quokka", word="zyzzyva")
        warm(bank)
        bank.review(SPACE, gone, actor="test", verdict="bad", note="zyzzyva review")
        bank.transition(SPACE, gone, MemoryState.RETIRED, actor="test", reason="zyzzyva reason")
        bank.transition(SPACE, gone, MemoryState.ACTIVE, actor="test", reason="zyzzyva again")
        warm(bank)
        wanted = [b"zyzzyva", b"quokka", *numbers(bank, gone)]
    before = found(place, wanted)
    if place.kind == "sealed":  # the keys of retrieval are not sealed, texts and tensors are
        assert before, "the search finds what is there"
        assert not any("zyzzyva" in hit or "quokka" in hit for hit in before)
    else:
        assert len(before) > len(wanted), "the search finds what is there"
    with closing(place.open()) as bank:
        warm(bank)
        report = bank.purge(SPACE, [gone], actor="test", reason="it has to go")
        assert (report.uses, report.jobs) == (1, 1)
        assert found(place, wanted) == [], "while the bank is open"
        warm(bank)
        learn(bank, "What comes after?")
    assert found(place, wanted) == []
    with closing(place.open()) as bank:
        assert len(bank.nearest(SPACE, KeyKind.INPUT, key_of("what", KeyKind.INPUT), 100)) == OTHERS + 1


@pytest.mark.postgres
def test_pgvector_keeps_nothing_for_others(pgvector_url: str, tmp_path: Path) -> None:
    """A backup that began before the purge may still see the deleted row, and statistics were made of the table."""
    place = Place("pgvector", tmp_path, pgvector_url)
    with closing(place.open()) as bank:
        bank.bind(SPACE, MODEL)
        ids = [learn(bank, f"What is {n}?") for n in range(5)]
        warm(bank)
        wanted = numbers(bank, ids[0])[:2]  # of the key that the index holds
        assert any(trace in data for name, data in place.index_files() for trace in wanted)
        with bank.database.engine.connect() as backup:
            backup = backup.execution_options(isolation_level="REPEATABLE READ")
            assert backup.scalar(text("SELECT count(*) FROM memories")) == 5
            with bank.database.write() as session:
                session.execute(text("ANALYZE"))
            bank.purge(SPACE, ids[:1], actor="test", reason=None)
            assert [name for name, data in place.index_files() for trace in wanted if trace in data] == []
            kept = "SELECT count(*) FROM pg_stats WHERE schemaname = 'elm_index' AND attname = 'key'"
            assert backup.scalar(text(kept)) == 0
        [hit] = bank.nearest(SPACE, KeyKind.INPUT, key_of("What is 3?", KeyKind.INPUT), 1)
        assert hit.memory_id in ids[1:]


def test_a_forgotten_person_leaves_no_trace(place: Place) -> None:
    with closing(place.open()) as bank:
        bank.bind(SPACE, MODEL)
        kept = [learn(bank, f"What is {n} and {n}?") for n in range(OTHERS)]
        mine = [learn(bank, f"What is zyzzyva {n}?", subject="quokka", word="zyzzyva") for n in range(3)]
        bank.record_use(use(kept[0], "zyzzyva", "quokka"))  # what the person asked of somebody else's memory
        bank.jobs.enqueue(SPACE, "zyzzyva waits", task="math", model_id=MODEL.id, recipe=RECIPE, subject="quokka")
        bank.pin(SPACE, mine[0], True, actor="test")
        warm(bank)
        wanted = [b"zyzzyva", b"quokka", *(data for one in mine for data in numbers(bank, one))]
        (forgotten,) = bank.forget_subject("quokka", actor="test")
        assert sorted(forgotten.memory_ids) == sorted(mine)
        assert found(place, wanted) == []
    with closing(place.open()) as bank:
        assert [job for job in bank.jobs.list(SPACE) if job.subject] == []
        assert len(bank.memories(SPACE)) == OTHERS


def test_a_pack_that_still_holds_it_is_named(place: Place, tmp_path: Path) -> None:
    from elm_agent.storage.health.doctor import FindingKind, examine

    with closing(place.open()) as bank:
        bank.bind(SPACE, MODEL)
        gone = learn(bank, "What is zyzzyva?")
        pack = tmp_path / "out.elm"
        export_pack(bank, SPACE, pack, actor="test")
        report = bank.purge(SPACE, [gone], actor="test", reason=None)
        assert [Path(path) for _, _, path in report.exports] == [pack]
        (finding,) = examine(bank, repair=True).findings
        assert (finding.kind, finding.subject, finding.action) == (FindingKind.EXPORTED_COPY, gone, None)
        assert str(pack) in finding.problem
        pack.unlink()
        assert examine(bank).clean
