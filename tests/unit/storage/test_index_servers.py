"""Banks on index servers: several processes share one, a dead one costs no answer, a killed one is fed again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bank_helpers import MODEL, learner
from servers import KeptChroma, free_port
from sqlalchemy import make_url, text

from elm_agent.errors import IndexUnavailable, SettingsError
from elm_agent.protocols import IndexCapability
from elm_agent.records import KeyKind, MemoryState
from elm_agent.runtime import open_bank
from elm_agent.settings import Settings
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.indexes import feed_durable
from elm_agent.storage.indexes.chroma_server import ChromaServerIndex
from elm_agent.storage.indexes.pgvector import PgvectorIndex
from elm_agent.storage.indexes.qdrant import QdrantIndex
from elm_agent.storage.indexes.server_urls import ServerUrl, parse_server_url
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.locks import only_one
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.testing.conformance import unit_vectors

INPUT, KV = KeyKind.INPUT, KeyKind.KV
KEYS = unit_vectors(40, width=4)


@pytest.fixture
def chroma(tmp_path: Path) -> Iterator[KeptChroma]:
    server = KeptChroma(tmp_path / "server")
    server.start()
    yield server
    server.kill()


def chroma_bank(server: KeptChroma, folder: Path) -> Bank:
    bank = open_bank(Settings(home=folder / "home", index=server.index), owns_index=False)
    bank.bind("default", MODEL)
    return bank


def found(bank: Bank, query: np.ndarray, k: int = 3, kind: KeyKind = INPUT) -> list[str]:
    return [hit.memory_id for hit in bank.nearest("default", kind, query, k)]


def test_a_purge_elsewhere_makes_the_collections_anew(chroma_server: KeptChroma, tmp_path: Path) -> None:
    one, two = chroma_bank(chroma_server, tmp_path), chroma_bank(chroma_server, tmp_path)
    check_that_purging_costs_no_answer(one, two)
    one.close()
    two.close()


def test_a_purge_elsewhere_makes_the_collections_anew_in_qdrant(database: Database, tmp_path: Path) -> None:
    """Two indexes on one client, as the embedded mode bears no second one."""
    url = ServerUrl("qdrant", "nowhere", 0, False, "bank")
    one, two = (QdrantIndex(url, folder=tmp_path / "qdrant") for _ in range(2))
    banks = [Bank(database, LocalTensors(tmp_path), index="durable", durable=index) for index in (one, two)]
    banks[0].bind("default", MODEL)
    with one._open() as client:
        two._client = client
    check_that_purging_costs_no_answer(*banks)
    one.close()


def check_that_purging_costs_no_answer(one: Bank, two: Bank) -> None:
    first, second, third = (learner(one)(name, key) for name, key in zip("abc", KEYS, strict=False))
    assert set(found(two, KEYS[1])) == {first.id, second.id, third.id}
    one.purge("default", [first.id], actor="t", reason=None)
    assert set(found(two, KEYS[1])) == {second.id, third.id}
    one.purge("default", [second.id], actor="t", reason=None)
    fourth = learner(two)("d", KEYS[3])
    assert two.feed() == 0, "it was fed when it was learnt"
    one.purge("default", [third.id], actor="t", reason=None)
    assert two.durable is not None
    assert two.durable.ids("default", INPUT) == {fourth.id}


def test_two_agents_share_a_server(chroma_server: KeptChroma, tmp_path: Path) -> None:
    one, two = chroma_bank(chroma_server, tmp_path), chroma_bank(chroma_server, tmp_path)
    first, second = learner(one)("a", KEYS[0]), learner(two)("b", KEYS[1])
    assert found(one, KEYS[1], 1) == found(two, KEYS[1], 1) == [second.id]
    one.transition("default", first.id, MemoryState.RETIRED, actor="t", reason=None)
    assert found(two, KEYS[0]) == [second.id]
    assert two.durable is not None
    assert two.durable.ids("default", INPUT) == {second.id}
    assert examine(one).clean
    one.close()
    two.close()


def test_banks_of_one_server_are_walls(chroma_server: KeptChroma, tmp_path: Path) -> None:
    one, two = chroma_bank(chroma_server, tmp_path / "1"), chroma_bank(chroma_server, tmp_path / "2")
    mine, other = learner(one)("a", KEYS[0]), learner(two)("a", KEYS[0])
    assert one.durable is not None
    one.rebuild_index()
    assert one.durable.ids("default", INPUT) == {mine.id}
    assert found(two, KEYS[0]) == [other.id]
    assert examine(two).clean
    one.close()
    two.close()


def test_a_killed_server_is_fed_again(chroma: KeptChroma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the middle of a feed: nothing is lost, the change is committed, doctor finds nothing afterwards."""
    monkeypatch.setattr(feed_durable, "BATCH", 3)
    bank = chroma_bank(chroma, tmp_path)
    learn = learner(bank)
    kept = [learn(f"before {n}", KEYS[n]).id for n in range(5)]
    killer = threading.Timer(0.3, chroma.kill)
    killer.start()
    kept += [learn(f"during {n}", KEYS[5 + n]).id for n in range(30)]
    killer.join()
    with pytest.raises(IndexUnavailable, match=rf"127\.0\.0\.1:{chroma.port} failed .* tried to connect"):
        found(bank, KEYS[0])
    gone = kept.pop()
    bank.transition("default", gone, MemoryState.RETIRED, actor="t", reason=None)
    chroma.start()
    bank.feed()
    assert bank.durable is not None
    assert bank.durable.ids("default", INPUT) == set(kept)
    assert [found(bank, KEYS[n], 1) for n in range(34)] == [[memory_id] for memory_id in kept]
    report = examine(bank)
    assert report.clean
    assert report.skipped == ()
    bank.close()


def test_a_server_that_lost_its_disk_is_fed_again(chroma: KeptChroma, tmp_path: Path) -> None:
    bank = chroma_bank(chroma, tmp_path)
    kept = [learner(bank)(f"q{n}", KEYS[n]).id for n in range(5)]
    chroma.kill()
    chroma.folder.rename(tmp_path / "lost")
    chroma.start()
    assert found(bank, KEYS[0], 1) == [kept[0]], "what the index lost is scanned"
    assert bank.feed() == 5
    assert found(bank, KEYS[2], 1) == [kept[2]]
    assert examine(bank).clean
    bank.close()


@pytest.mark.parametrize("index", ["chroma+http://127.0.0.1:{}", "qdrant+http://127.0.0.1:{}"])
def test_nobody_at_the_port_is_one_sentence(index: str, tmp_path: Path) -> None:
    bank = open_bank(Settings(home=tmp_path, index=index.format(free_port())))
    bank.bind("default", MODEL)
    memory = learner(bank)("a", KEYS[0])  # the change is committed all the same
    with pytest.raises(IndexUnavailable, match=r"http://127\.0\.0\.1:"):
        found(bank, KEYS[0])
    assert [skipped.startswith("the ") for skipped in examine(bank).skipped] == [True]
    bank.close()
    exact = open_bank(Settings(home=tmp_path, index="exact"))
    assert found(exact, KEYS[0]) == [memory.id]
    exact.close()


@pytest.mark.postgres
def test_pgvector_serves_a_bank_and_measures_what_it_projects(pgvector_url: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url=pgvector_url, index="pgvector")
    one, two = open_bank(settings, owns_index=False), open_bank(settings, owns_index=False)
    one.bind("default", MODEL)
    wide = unit_vectors(40, width=4100)
    learn = learner(one)
    made = [learn(f"q{n}", KEYS[n], kv=wide[n]) for n in range(40)]
    assert two.durable is not None
    assert two.durable.ids("default", KV) == {memory.id for memory in made}
    query = unit_vectors(1, width=4100, seed=3)[0]
    cosines = np.array(wide, dtype=np.float64) @ query
    best = np.argsort(-cosines)[:5]
    hits = two.nearest("default", KV, query, 5)
    assert [hit.memory_id for hit in hits] == [made[n].id for n in best]
    assert [hit.similarity for hit in hits] == pytest.approx(cosines[best].tolist(), abs=1e-6)
    one.purge("default", [made[7].id], actor="t", reason=None)
    assert two.durable.ids("default", INPUT) == {memory.id for memory in made if memory != made[7]}
    assert examine(two).clean
    one.close()
    two.close()


@pytest.mark.postgres
def test_pgvector_says_what_is_missing(postgres_server: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="this bank has SQLite"):
        open_bank(Settings(home=tmp_path, index="pgvector"))
    database = Database.open(postgres_server)
    with database.read() as session:
        has = session.scalar(text("SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'"))
    if has:
        pytest.skip("this PostgreSQL has pgvector")
    with pytest.raises(IndexUnavailable, match="the extension `vector`"):
        PgvectorIndex(database).acknowledge_rebuild()
    database.close()


def test_one_feeder_at_a_time(database_url: str) -> None:
    database, order, inside = Database.open(database_url), [], threading.Event()

    def second() -> None:
        assert inside.wait(30)
        with only_one(database, "name", seconds=30):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with only_one(database, "name", seconds=30):
        inside.set()
        with only_one(database, "another", seconds=5):
            order.append("first")
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(30)
    assert order == ["first", "second"]
    database.close()


def test_urls_of_servers() -> None:
    here, there = make_url("postgresql://u:p@db:5432/elm"), make_url("postgresql://v:q@db:5432/other")
    url = parse_server_url("chroma+https://host", here)
    assert (url.address, url.secure) == ("https://host:443", True)
    assert url == parse_server_url("chroma+https://host/", here.set(password="new"))
    assert url.bank != parse_server_url("chroma+https://host", there).bank
    assert parse_server_url("qdrant+http://[::1]:6333/mine", here).address == "http://[::1]:6333"
    assert parse_server_url("qdrant+http://h:1/mine", here) == parse_server_url("qdrant+http://h:1/mine", there)
    for bad in ("chroma+http://", "chroma+http://h:99999", "chroma+http://u:secret@h:1", "qdrant+http://h:1/a/b"):
        with pytest.raises(SettingsError) as caught:
            parse_server_url(bad, here)
        assert "secret" not in str(caught.value)


def test_what_each_promises(tmp_path: Path) -> None:
    url = parse_server_url("qdrant+http://h:1", make_url("sqlite:///x"))
    shared = {IndexCapability.BASE, IndexCapability.DURABLE, IndexCapability.SHARED}
    assert ChromaServerIndex(url).capabilities == shared | {IndexCapability.WIDE}
    assert QdrantIndex(url).capabilities == shared
    assert IndexCapability.SHARED not in QdrantIndex(url, folder=tmp_path).capabilities
    assert PgvectorIndex.capabilities == shared | {IndexCapability.ERASES}


def test_a_server_that_cannot_be_reached_keeps_a_purge_pending(chroma: KeptChroma, tmp_path: Path) -> None:
    bank = chroma_bank(chroma, tmp_path)
    secret, kept = learner(bank)("a", KEYS[0]), learner(bank)("b", KEYS[1])
    chroma.kill()
    with pytest.raises(IndexUnavailable):
        bank.scrub_indexes("default")
    chroma.start()
    bank.purge("default", [secret.id], actor="t", reason=None)
    assert bank.scrub_indexes("default") == [bank.durable.name] if bank.durable else []
    assert found(bank, KEYS[0]) == [kept.id]
    bank.close()


def test_a_bank_moved_to_exact_names_the_index_it_left(chroma_server: KeptChroma, tmp_path: Path) -> None:
    bank = chroma_bank(chroma_server, tmp_path)
    learner(bank)("a", KEYS[0])
    assert bank.durable is not None
    name = bank.durable.name
    bank.close()
    other = Bank(Database.open(f"sqlite:///{tmp_path}/home/elm.sqlite"), LocalTensors(tmp_path / "t"), index="exact")
    assert other.scrub_indexes("default") == [name]
    other.close()
