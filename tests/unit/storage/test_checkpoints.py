"""Checkpoints: taken, signed, read back, and every way of rewriting history that a chain alone cannot show."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bank_helpers import MODEL, Learn, unit
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from elm_agent.errors import InputError, StorageError
from elm_agent.storage.bank import Bank
from elm_agent.storage.ledger import chain, checkpoints
from elm_agent.storage.ledger.chain import link
from elm_agent.storage.ledger.checkpoints import ChainPoint, Checkpoint
from elm_agent.storage.ledger.signing import BadSignature, SigningKey
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import EventRow, NamespaceRow

KEY = SigningKey.generate()


@pytest.fixture
def taken(bank: Bank, learn: Learn, tmp_path: Path) -> Checkpoint:
    """A checkpoint of three memories, taken through a file, before two more events."""
    for n in range(3):
        learn(f"question {n}", unit(1, n, 0, 0))
    bank.bind("empty", MODEL)
    checkpoints.write(checkpoints.take(bank.database, key=KEY), tmp_path / "checkpoint.json")
    learn("later", unit(0, 0, 1, 0))
    return checkpoints.read(tmp_path / "checkpoint.json")


def problems(database: Database, taken: Checkpoint) -> list[str]:
    return [entry.problem for entry in checkpoints.compare(database, taken) if entry.problem is not None]


def rewrite(session: Session, alter: Callable[[EventRow], None], *, start: int = 1) -> None:
    """As somebody who owns the database and knows the code: history is written anew, and every digest with it."""
    previous = chain.genesis("default")
    events = session.scalars(select(EventRow).where(EventRow.namespace == "default").order_by(EventRow.revision))
    for event in events.all():
        if event.revision >= start:
            alter(event)
            event.digest = link(
                previous,
                namespace=event.namespace,
                revision=event.revision,
                kind=event.kind,
                memory_id=event.memory_id,
                actor=event.actor,
                detail=event.detail,
                note_digest=event.note_digest,
                created_at=event.created_at,
            )
        previous = event.digest
    session.execute(update(NamespaceRow).where(NamespaceRow.name == "default").values(head=previous))


def test_a_bank_goes_on_from_its_checkpoint(bank: Bank, taken: Checkpoint) -> None:
    checkpoints.check_signature(taken, KEY.public)
    assert [point.namespace for point in taken.chains] == ["default", "empty"]
    compared = checkpoints.compare(bank.database, taken)
    assert [(entry.problem, entry.events_since > 0) for entry in compared] == [(None, True), (None, False)]


def test_history_written_anew_is_found(bank: Bank, taken: Checkpoint) -> None:
    def alter(event: EventRow) -> None:
        event.actor = "somebody else"

    with bank.database.write() as session:
        rewrite(session, alter)
    assert chain.verify(bank.database, "default").broken is None, "the chain alone does not show it"
    (problem,) = problems(bank.database, taken)
    assert "history was written anew" in problem


def test_a_fork_before_the_checkpoint_is_found_and_one_after_it_is_not(bank: Bank, taken: Checkpoint) -> None:
    def alter(event: EventRow) -> None:
        event.actor = "somebody else"

    moment = taken.chains[0].revision
    with bank.database.write() as session:
        rewrite(session, alter, start=moment + 1)
    assert problems(bank.database, taken) == [], "what came later is for the next checkpoint"
    with bank.database.write() as session:
        rewrite(session, alter, start=moment)
    assert len(problems(bank.database, taken)) == 1


def test_a_chain_cut_off_is_found(bank: Bank, taken: Checkpoint) -> None:
    short = taken.chains[0].revision - 1
    with bank.database.write() as session:
        session.execute(delete(EventRow).where(EventRow.namespace == "default", EventRow.revision > short))
        last = session.get_one(EventRow, ("default", short))
        session.execute(
            update(NamespaceRow).where(NamespaceRow.name == "default").values(head=last.digest, revision=short)
        )
    assert chain.verify(bank.database, "default").broken is None, "the chain alone does not show it"
    (problem,) = problems(bank.database, taken)
    assert "the last ones were removed" in problem


def test_a_namespace_that_is_gone_is_found(database: Database, taken: Checkpoint) -> None:
    with database.write() as session:
        session.execute(delete(NamespaceRow).where(NamespaceRow.name == "empty"))
    (problem,) = problems(database, taken)
    assert "the namespace is gone" in problem


def test_a_broken_chain_is_found_and_gets_no_checkpoint(bank: Bank, taken: Checkpoint) -> None:
    with bank.database.write() as session:
        session.execute(update(EventRow).where(EventRow.revision == 2).values(actor="somebody else"))
    (problem,) = problems(bank.database, taken)
    assert problem.startswith("event 2: ")
    with pytest.raises(StorageError, match="'default' is broken at event 2"):
        checkpoints.take(bank.database, key=KEY)


def test_any_change_of_the_file_breaks_the_signature(taken: Checkpoint) -> None:
    first, *rest = taken.chains
    for changed in (
        replace(taken, created_at="2026-01-01T00:00:00+00:00"),
        replace(taken, library_version="9"),
        replace(taken, chains=(replace(first, revision=first.revision - 1), *rest)),
        replace(taken, chains=(first,)),
        replace(taken, signature=SigningKey.generate().sign(taken.signed_bytes())),
        replace(taken, public_key=str(SigningKey.generate().public)),
        replace(taken, signature=None),
    ):
        with pytest.raises(BadSignature):
            checkpoints.check_signature(changed, KEY.public)
    with pytest.raises(BadSignature, match="was signed by"):
        checkpoints.check_signature(taken, SigningKey.generate().public)


def test_the_signed_bytes_are_what_the_documentation_says(taken: Checkpoint, tmp_path: Path) -> None:
    assert taken.signature is not None
    document = json.loads((tmp_path / "checkpoint.json").read_text())
    signature = document.pop("signature")
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    KEY.public.verify(b"elm-agent checkpoint 1\n" + text.encode(), signature)


GOOD = {
    "format": checkpoints.FORMAT,
    "library_version": "1",
    "created_at": "2026-01-01T00:00:00+00:00",
    "chains": [{"namespace": "a", "revision": 1, "head": "sha256:" + "0" * 64}],
    "public_key": None,
    "signature": None,
}
BAD: list[Any] = [
    b"",
    b"\xff\xff",
    b"null",
    b"[]",
    b"[" * 100_000,
    b"1e999",
    {},
    GOOD | {"more": 1},
    GOOD | {"format": "elm-agent checkpoint 2"},
    GOOD | {"created_at": "yesterday"},
    GOOD | {"signature": 5},
    GOOD | {"chains": None},
    GOOD | {"chains": [[]]},
    GOOD | {"chains": GOOD["chains"] * 2},  # type: ignore[operator]
    *(
        GOOD | {"chains": [{"namespace": "a", "revision": 1, "head": "sha256:" + "0" * 64} | wrong]}
        for wrong in ({"revision": -1}, {"revision": True}, {"revision": 2**63}, {"head": "x"}, {"head": 1}, {"b": 1})
    ),
]


@pytest.mark.parametrize("content", BAD, ids=range(len(BAD)))
def test_what_is_no_checkpoint_is_one_sentence(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(InputError, match="is no checkpoint"):
        checkpoints.read(path)


def test_a_good_file_is_read_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(json.dumps(GOOD))
    assert checkpoints.read(path).chains == (ChainPoint("a", 1, "sha256:" + "0" * 64),)
    with pytest.raises(InputError, match="not overwritten"):
        checkpoints.write(checkpoints.read(path), path)
    with pytest.raises(InputError, match="cannot be read"):
        checkpoints.read(tmp_path)
