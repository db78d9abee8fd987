"""A bank goes from one machine to servers and back: PostgreSQL, S3, pgvector; and one that is encrypted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bank_helpers import MODEL, RECIPE, learner, unit
from s3 import S3Server

from elm_agent.errors import BankMoved, VaultLocked
from elm_agent.records import KeyKind
from elm_agent.runtime import open_bank
from elm_agent.settings import Settings
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.ledger import chain
from elm_agent.storage.moving.move import MoveReport, move
from elm_agent.storage.vault.rotation import rotate_data
from elm_agent.storage.vault.status import vault_status

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
KEYS = [unit(1, 0, 0, 0), unit(0, 1, 0, 0), unit(0, 0, 1, 0)]

Open = Callable[..., Bank]


@pytest.fixture
def opened() -> Iterator[Open]:
    banks: list[Bank] = []

    def open_(settings: Settings, key: bytes | None = None) -> Bank:
        banks.append(open_bank(settings, encryption_key=None if key is None else lambda: key))
        return banks[-1]

    yield open_
    for bank in banks:
        bank.close()


@pytest.fixture
def local(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "local", index="exact")


@pytest.fixture
def server(tmp_path: Path, pgvector_url: str, s3_server: S3Server) -> Settings:
    return Settings(
        home=tmp_path / "server",
        database_url=pgvector_url,
        tensors=s3_server.new_url(),
        tensor_options={"endpoint_url": s3_server.endpoint},
        index="pgvector",
    )


def filled(bank: Bank) -> list[str]:
    """Three memories and a job that waits, of a person; one purged. The ids of the memories."""
    bank.bind("default", MODEL)
    learn = learner(bank)
    made = [learn(f"{n} question", key, kv=unit(n + 1, 2, 3, 4, 5, 6, 7, 8)).id for n, key in enumerate(KEYS)]
    gone = learn("to be purged", unit(0, 0, 0, 1)).id
    bank.purge("default", [gone], actor="test", reason="private")
    bank.review("default", made[0], actor="test", verdict="good", note="it is right")
    bank.jobs.enqueue("default", "waits", task="math", model_id=MODEL.id, recipe=RECIPE, subject="ann")
    return made


def check_whole(bank: Bank, made: list[str]) -> None:
    """Every memory is found by its key, its tensor read, its texts readable, the ledger unbroken, the bank clean."""
    for n, (memory_id, key) in enumerate(zip(made, KEYS, strict=True)):
        assert [hit.memory_id for hit in bank.nearest("default", KeyKind.INPUT, key, 1)] == [memory_id]
        assert bank.prompt("default", memory_id).width == 4
        assert bank.memory("default", memory_id).question == f"{n} question"
        assert bank.episode("default", memory_id).rollouts[0].answer == "56"
    assert bank.jobs.list("default")[0].question == "waits", "the newest"
    assert "it is right" in {event.note for event in bank.events("default")}
    assert chain.verify(bank.database, "default", vault=bank.vault).broken is None
    report = examine(bank)
    assert (report.findings, report.skipped) == ((), ())


def moved(source: Bank, target: Bank) -> MoveReport:
    report = move(source, target, actor="test")
    assert (report.moved, report.missing, report.index) == (True, (), None)
    assert report.tensors == 3
    with pytest.raises(BankMoved):
        source.bind("default", MODEL)
    return report


@pytest.mark.postgres
@pytest.mark.s3
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_to_the_servers_and_back(key: bytes | None, local: Settings, server: Settings, opened: Open) -> None:
    source = opened(local, key)
    made = filled(source)
    target = opened(server, key)
    moved(source, target)
    check_whole(target, made)
    assert target.durable is not None
    assert target.durable.ids("default", KeyKind.INPUT) == set(made)
    assert list(server.home.rglob("*.sqlite")) == []
    fresh = opened(server, key)
    check_whole(fresh, made)
    before = sorted(fresh.tensors.digests("default"))
    moved(fresh, source)
    check_whole(source, made)
    assert sorted(source.tensors.digests("default")) == before
    check_whole(opened(local, key), made)


def test_a_sealed_bank_stays_sealed(local: Settings, database_url: str, tmp_path: Path, opened: Open) -> None:
    """Its keys go along, wrapped: the same master key opens the target, another one is refused there too."""
    source = opened(local, KEY)
    made = filled(source)
    there = Settings(home=tmp_path / "there", database_url=database_url, index="exact")
    target = opened(there, KEY)
    moved(source, target)
    check_whole(target, made)
    assert [status.readable for status in vault_status(target)] == [0]
    for data in (path.read_bytes() for path in (tmp_path / "there").rglob("*") if path.is_file()):
        assert b"question" not in data
    with pytest.raises(VaultLocked, match="give the master key"):
        opened(there, OTHER_KEY).bind("default", MODEL)


def test_keys_that_were_rotated_on_the_other_side_come_back(
    local: Settings, database_url: str, tmp_path: Path, opened: Open
) -> None:
    source = opened(local, KEY)
    made = filled(source)
    target = opened(Settings(home=tmp_path / "there", database_url=database_url, index="exact"), KEY)
    moved(source, target)
    assert rotate_data(target, "default").finished
    moved(target, source)
    check_whole(source, made)
    assert learner_goes_on(source)


def learner_goes_on(bank: Bank) -> bool:
    """What is sealed from now on can be read, by this bank and by one that is opened anew."""
    lease = bank.jobs.claim("worker", lease_seconds=60)
    return lease is not None and lease.job.question == "waits"


@pytest.mark.parametrize("key", [None, OTHER_KEY], ids=["no key", "another key"])
def test_a_target_that_could_not_read_it_is_refused(
    key: bytes | None, local: Settings, database_url: str, tmp_path: Path, opened: Open
) -> None:
    source = opened(local, KEY)
    made = filled(source)
    target = opened(Settings(home=tmp_path / "there", database_url=database_url, index="exact"), key)
    for dry_run in (True, False):
        with pytest.raises(VaultLocked, match="key"):
            move(source, target, actor="test", dry_run=dry_run)
    assert target.namespaces() == []
    check_whole(source, made)


def test_a_readable_bank_is_sealed_by_the_next_rotation_in_a_target_with_a_key(
    local: Settings, database_url: str, tmp_path: Path, opened: Open
) -> None:
    source = opened(local)
    made = filled(source)
    there = Settings(home=tmp_path / "there", database_url=database_url, index="exact")
    moved(source, opened(there, KEY))
    target = opened(there, KEY)
    check_whole(target, made)
    assert rotate_data(target, "default").finished
    check_whole(target, made)
    assert [status.readable for status in vault_status(target)] == [0]
