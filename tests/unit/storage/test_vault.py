"""Vaults on a real database: sealing, opening, wrong and missing keys, switched on for a bank that is in use."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bank_helpers import MODEL, learner, unit
from sqlalchemy import select, update
from vault_helpers import FIRST, SECOND, bank_with, encrypted_bank, masters, plain_bank

from elm_agent.errors import StorageError, TensorCorrupt, VaultLocked
from elm_agent.records import MemoryState
from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import MemoryRow, VaultKeyRow
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.storage.vault.base import LockedVault, PlainVault
from elm_agent.storage.vault.encrypted import EncryptedVault
from elm_agent.storage.vault.keys import encrypted
from elm_agent.storage.vault.opening import open_vault


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tensors"


@pytest.fixture
def bank(database: Database, folder: Path) -> Iterator[Bank]:
    return encrypted_bank(database, folder)


@pytest.fixture
def vault(bank: Bank) -> EncryptedVault:
    assert isinstance(bank.vault, EncryptedVault)
    return bank.vault


def other(database: Database, *keys: bytes) -> EncryptedVault:
    """The vault of another process."""
    return EncryptedVault(database, masters(*keys))


def test_what_one_process_seals_another_opens(database: Database, vault: EncryptedVault) -> None:
    word = vault.seal("default", "wie viel ist 7 × 8? \U0001f600")
    assert word.startswith("elm1:1:")
    assert vault.seal("default", "wie viel") != vault.seal("default", "wie viel")
    again = other(database, FIRST)
    assert again.open("default", word) == "wie viel ist 7 × 8? \U0001f600"
    assert again.open_bytes("default", vault.seal_bytes("default", b"bytes")) == b"bytes"
    assert again.blind("default", "ada") == vault.blind("default", "ada") != vault.blind("default", "bob")


def test_namespaces_have_keys_of_their_own(bank: Bank, vault: EncryptedVault) -> None:
    bank.bind("other", MODEL)
    assert vault.blind("default", "ada") != vault.blind("other", "ada")
    with pytest.raises(
        StorageError, match="namespace 'other' cannot be opened: it was altered, or sealed for another"
    ):
        vault.open("other", vault.seal("default", "text"))
    with pytest.raises(TensorCorrupt, match="sealed for another place"):
        vault.open_bytes("other", vault.seal_bytes("default", b"tensor"))


def test_a_text_is_no_tensor(vault: EncryptedVault) -> None:
    from elm_agent.storage.vault import crypto

    blob = crypto.from_text(vault.seal("default", "text"))
    assert blob is not None
    with pytest.raises(TensorCorrupt):
        vault.open_bytes("default", blob)


def test_a_row_moved_to_another_namespace_is_refused(bank: Bank, database: Database) -> None:
    bank.bind("other", MODEL)
    learn = learner(bank)
    mine = learn("my secret", unit(1, 0, 0, 0))
    theirs = learn("their secret", unit(0, 1, 0, 0), namespace="other")
    with database.write() as session:
        stolen = session.get_one(MemoryRow, ("other", theirs.id)).question
        session.get_one(MemoryRow, ("default", mine.id)).question = stolen
    with pytest.raises(StorageError, match="namespace 'default' cannot be opened"):
        bank.memory("default", mine.id)


def test_every_flipped_bit_of_a_sealed_column_is_found(bank: Bank, database: Database) -> None:
    memory = learner(bank)("what is hidden?", unit(1, 0, 0, 0))
    with database.read() as session:
        good = session.get_one(MemoryRow, ("default", memory.id)).question.encode("ascii")
    vault = bank.vault
    found = 0
    for position in range(len(good) * 8):
        broken = bytearray(good)
        broken[position // 8] ^= 1 << position % 8
        try:
            text = broken.decode("utf-8")
        except UnicodeDecodeError:
            continue  # no database gives such a text back
        with pytest.raises(StorageError):
            vault.open("default", text)
        found += 1
    assert found > 7 * len(good) * 0.9


def test_the_wrong_master_key_is_one_clear_sentence(database: Database, vault: EncryptedVault) -> None:
    word = vault.seal("default", "text")
    wrong = other(database, SECOND)
    with pytest.raises(VaultLocked) as caught:
        wrong.open("default", word)
    message = str(caught.value)
    assert "the bank's key for namespace 'default' was wrapped by master key mk-" in message
    assert masters(FIRST).current().id in message
    assert masters(SECOND).current().id in message
    assert "111111" not in message
    with pytest.raises(VaultLocked):
        wrong.ensure("default")


def test_a_damaged_wrapped_key_is_named(database: Database, vault: EncryptedVault) -> None:
    vault.ensure("default")
    with database.write() as session:
        row = session.get_one(VaultKeyRow, ("default", "data", 1))
        row.wrapped = row.wrapped[:-1] + bytes([row.wrapped[-1] ^ 1])
    with pytest.raises(VaultLocked, match=r"key 1 \(data\) of namespace 'default' cannot be unwrapped"):
        other(database, FIRST).seal("default", "text")


def test_without_a_key_an_encrypted_bank_is_locked(database: Database, bank: Bank, folder: Path) -> None:
    memory = learner(bank)("secret", unit(1, 0, 0, 0))
    vault = open_vault(database)
    assert isinstance(vault, LockedVault)
    locked = Bank(database, LocalTensors(folder), index="exact", vault=vault)
    for call in (
        lambda: locked.bind("default", MODEL),
        lambda: locked.bind("brand-new", MODEL),
        lambda: locked.memory("default", memory.id),
        lambda: locked.prompt("default", memory.id),
        lambda: locked.transition("default", memory.id, MemoryState.RETIRED, actor="me", reason="why"),
    ):
        with pytest.raises(VaultLocked, match=r"encryption\.key_file"):
            call()
    assert bank.memory("default", memory.id).state == MemoryState.ACTIVE


def test_a_bank_without_keys_is_plain(database: Database) -> None:
    assert isinstance(open_vault(database), PlainVault)
    assert not encrypted(database)


def test_encryption_is_switched_on_for_a_bank_with_memories(database: Database, folder: Path) -> None:
    before = plain_bank(database, folder)
    old = learner(before)("old question", unit(1, 0, 0, 0))
    tensor = before.prompt("default", old.id).prompt_VE
    bank = encrypted_bank(database, folder)
    new = learner(bank)("new question", unit(0, 1, 0, 0))
    assert [memory.question for memory in bank.memories("default", order="created_at")] == [
        "old question",
        "new question",
    ]
    assert torch.equal(bank.prompt("default", old.id).prompt_VE, tensor)
    with database.read() as session:
        stored = dict(session.execute(select(MemoryRow.id, MemoryRow.question)).all())  # type: ignore[arg-type]
    assert stored[old.id] == "old question"
    assert stored[new.id].startswith("elm1:1:")


def test_a_readable_tensor_is_refused_where_all_is_sealed(database: Database, bank: Bank, folder: Path) -> None:
    memory = learner(bank)("question", unit(1, 0, 0, 0))
    from elm_agent.softprompt import to_bytes

    planted = LocalTensors(folder).put("default", to_bytes(torch.zeros(2, 4)))
    with database.write() as session:
        session.execute(update(MemoryRow).values(tensor_digest=planted))
    with pytest.raises(TensorCorrupt, match="is not sealed"):
        bank.prompt("default", memory.id)


@pytest.mark.parametrize("text", ["elm1:1:abc", "elm1:", "elm0:", "elm0:elm1:x", "elm1:1:" + "A" * 60])
def test_a_question_that_looks_sealed_is_a_question(database: Database, folder: Path, text: str) -> None:
    plain = plain_bank(database, folder)
    memory = learner(plain)(text, unit(1, 0, 0, 0))
    assert plain.memory("default", memory.id).question == text
    bank = encrypted_bank(database, folder)
    assert bank.memory("default", memory.id).question == text
    assert bank.vault.open("default", bank.vault.seal("default", text)) == text


def test_a_wrong_key_does_not_cost_memories(database: Database, bank: Bank, folder: Path) -> None:
    """The doctor must not take a locked tensor for an altered one."""
    from elm_agent.storage.health.doctor import examine

    memory = learner(bank)("question", unit(1, 0, 0, 0))
    examine(bank_with_wrong_key(database, folder), repair=True)
    assert bank.memory("default", memory.id).state == MemoryState.ACTIVE


def bank_with_wrong_key(database: Database, folder: Path) -> Bank:
    return Bank(database, LocalTensors(folder), index="exact", vault=other(database, SECOND))


def test_many_threads_seal_and_open(bank: Bank) -> None:
    from concurrent.futures import ThreadPoolExecutor

    vault = bank_with(bank.database, Path("unused"), other(bank.database, FIRST)).vault
    with ThreadPoolExecutor(8) as pool:
        words = list(pool.map(lambda n: vault.seal("default", f"text {n}"), range(200)))
        assert list(pool.map(lambda word: vault.open("default", word), words)) == [f"text {n}" for n in range(200)]
    assert len(set(words)) == 200


def test_nothing_secret_is_shown(vault: EncryptedVault) -> None:
    ring = vault.ring("default")
    shown = f"{vault!r} {ring!r} {vars(vault)!r}"
    for secret in (FIRST, *ring.data.values(), ring.blind):
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown
