"""``encryption``, ``keys`` and ``audit`` as users call them, with the mistakes that users make. Opens no model."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Elm, assert_one_sentence, error_of
from sqlalchemy import text as sql
from typer.testing import Result

from elm_agent.records import MemoryKeys, MemoryState, Recipe
from elm_agent.runtime import open_bank
from elm_agent.settings import Settings
from elm_agent.storage.adopt import Adopted
from elm_agent.storage.bank import Bank
from elm_agent.storage.ledger.signing import SigningKey
from elm_agent.testing.doubles import WIDTH, fake_fingerprint, unit_vector

SECRET = "the secret question"


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELM_INDEX", "exact")


def fill(home: Path) -> Bank:
    """A bank with two memories in ``default``, nobody's key, and an empty namespace, ``other``."""
    import torch

    from elm_agent.softprompt import SoftPrompt

    bank = open_bank(Settings(home=home, index="exact"))
    for namespace in ("default", "other"):
        bank.bind(namespace, fake_fingerprint())
    items = [
        Adopted(
            question=f"{SECRET} {n}",
            task="math",
            prompt=SoftPrompt(torch.full((2, WIDTH), float(n + 1))),
            keys=MemoryKeys(input=unit_vector(f"question {n}", WIDTH), kv=None),
            model=fake_fingerprint(),
            recipe=Recipe(virtual_tokens=2),
            origin="test",
            state=MemoryState.ACTIVE,
        )
        for n in range(2)
    ]
    bank.adopt("default", items, actor="test")
    return bank


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    bank = fill(tmp_path / ".elm")
    yield bank
    bank.close()


@pytest.fixture
def sealed(elm: Elm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bank in ./.elm that is sealed under the master key in ./old.key; the settings name that file."""
    assert elm("encryption", "new-key", "--out", "old.key").exit_code == 0
    monkeypatch.setenv("ELM_ENCRYPTION__KEY_FILE", "old.key")
    fill(tmp_path / ".elm").close()
    return tmp_path / "old.key"


def document(elm: Elm, *words: object) -> Any:
    result = elm(*words, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return json.loads(result.stdout)


def text(elm: Elm, *words: object) -> str:
    result = elm(*words)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def change(bank: Bank, statement: str) -> None:
    with bank.database.engine.begin() as connection:
        assert connection.execute(sql(statement)).rowcount == 1


# --- keys ---------------------------------------------------------------------------------------------------------


def test_a_key_pair_is_made_and_shown(elm: Elm, tmp_path: Path) -> None:
    public = text(elm, "keys", "new", "--out", "a.pem").strip()
    assert public.startswith("ed25519:")
    assert stat.S_IMODE((tmp_path / "a.pem").stat().st_mode) == 0o600
    assert text(elm, "keys", "show", "a.pem").strip() == public
    shown = document(elm, "keys", "show", "a.pem")
    assert (set(shown), shown["public_key"]) == ({"public_key", "fingerprint"}, public)
    assert document(elm, "keys", "new", "--out", "b.pem")["public_key"] != public


def test_a_key_is_never_overwritten(elm: Elm, tmp_path: Path) -> None:
    assert elm("keys", "new", "--out", "a.pem").exit_code == 0
    before = (tmp_path / "a.pem").read_bytes()
    assert_one_sentence(elm("keys", "new", "--out", "a.pem"), 2, "a.pem exists already")
    assert error_of(elm("encryption", "new-key", "--out", "a.pem", "--json"))["type"] == "SettingsError"
    assert (tmp_path / "a.pem").read_bytes() == before
    assert_one_sentence(elm("keys", "new", "--out", "no/such/a.pem"), 2, "cannot be written: No such file")


def test_what_is_no_private_key_is_refused(elm: Elm, tmp_path: Path) -> None:
    public = text(elm, "keys", "new", "--out", "a.pem")
    (tmp_path / "a.pub").write_text(public)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("a.pub", "bytes"):
        (tmp_path / name).chmod(0o600)
    assert_one_sentence(elm("keys", "show", "nowhere.pem"), 2, "'nowhere.pem' cannot be read: No such file")
    assert_one_sentence(elm("keys", "show", "a.pub"), 2, "a.pub is no private key in PEM")
    assert_one_sentence(elm("keys", "show", "bytes"), 2, "bytes is not text")
    assert_one_sentence(elm("keys", "show", "."), 2, "cannot be read: Is a directory")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_can_read_is_refused(elm: Elm, tmp_path: Path, mode: int) -> None:
    assert elm("keys", "new", "--out", "a.pem").exit_code == 0
    (tmp_path / "a.pem").chmod(mode)
    assert_one_sentence(elm("keys", "show", "a.pem"), 2, f"(mode {mode:04o}): `chmod 600 a.pem`")
    assert error_of(elm("keys", "show", "a.pem", "--json"))["type"] == "SettingsError"


# --- encryption ---------------------------------------------------------------------------------------------------


def test_a_new_master_key(elm: Elm, tmp_path: Path) -> None:
    assert len(base64.b64decode(text(elm, "encryption", "new-key").strip(), validate=True)) == 32
    assert len(base64.b64decode(document(elm, "encryption", "new-key")["key"], validate=True)) == 32
    said = text(elm, "encryption", "new-key", "--out", "m.key")
    file = tmp_path / "m.key"
    assert "ELM_ENCRYPTION__KEY_FILE" in said
    assert file.read_text().strip() not in said
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    made = document(elm, "encryption", "new-key", "--out", "n.key")
    assert set(made) == {"file", "master_id"}
    assert made["master_id"].startswith("mk-")


def test_status_of_a_readable_and_of_a_sealed_bank(elm: Elm, sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {entry["namespace"]: entry for entry in document(elm, "encryption", "status")}
    assert {name: entry["version"] for name, entry in found.items()} == {"default": 1, "other": 1}
    assert [(entry["readable"], entry["outdated"], entry["problem"]) for entry in found.values()] == [
        (0, 0, None)
    ] * 2
    assert found["default"]["master_ids"][0] in text(elm, "encryption", "status")
    monkeypatch.delenv("ELM_ENCRYPTION__KEY_FILE")
    fill(sealed.parent / "plain").close()
    [default, _] = document(elm, "encryption", "status", "--home", "plain")
    assert default["version"] is None
    assert default["readable"] > 0


def test_a_sealed_bank_tells_nothing_without_its_key(elm: Elm, sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SECRET in text(elm, "memories", "list")
    elm("encryption", "new-key", "--out", "wrong.key")
    monkeypatch.setenv("ELM_ENCRYPTION__KEY_FILE", "wrong.key")
    assert_locked(elm("memories", "list"))
    error = error_of(elm("memories", "list", "--json"))
    assert (error["type"], error["exit_code"]) == ("VaultLocked", 4)
    monkeypatch.setenv("ELM_ENCRYPTION__KEY_FILE", "nowhere.key")
    assert_one_sentence(elm("memories", "list"), 2, "'nowhere.key' cannot be read: No such file")
    sealed.chmod(0o644)
    monkeypatch.setenv("ELM_ENCRYPTION__KEY_FILE", "old.key")
    assert_one_sentence(elm("encryption", "status"), 2, "(mode 0644): `chmod 600 old.key`")


def assert_locked(result: Result) -> None:
    assert_one_sentence(result, 4, "key")
    assert SECRET not in result.output


def test_a_new_master_key_takes_over(elm: Elm, sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sealed.exists()
    new = document(elm, "encryption", "new-key", "--out", "new.key")["master_id"]
    done = document(elm, "encryption", "rotate", "--new-key-file", "new.key")
    assert {entry["namespace"]: entry["master_id"] for entry in done} == {"default": new, "other": new}
    assert_locked(elm("memories", "list"))
    monkeypatch.setenv("ELM_ENCRYPTION__KEY_FILE", "new.key")
    assert SECRET in text(elm, "memories", "list")
    [event] = document(elm, "audit", "log", "--kind", "key_rotated")
    assert event["detail"]["to"] == new
    elm("encryption", "new-key", "--out", "third.key")
    assert "2 of 2 namespaces were wrapped anew" in elm("encryption", "rotate", "--new-key-file", "third.key").stdout


def test_a_new_data_key_seals_everything_anew(elm: Elm, sealed: Path) -> None:
    assert sealed.exists()
    [done] = document(elm, "encryption", "rotate", "--data")
    assert (done["namespace"], done["version"], done["finished"], done["left"]) == ("default", 2, True, [])
    assert done["tensors"] == 2
    both = document(elm, "encryption", "rotate", "--data", "--all")
    assert {entry["namespace"]: entry["version"] for entry in both} == {"default": 3, "other": 2}
    told = elm("encryption", "rotate", "--data")
    assert (told.exit_code, "2 tensors are sealed by key 4" in told.stdout) == (0, True)
    assert SECRET in text(elm, "memories", "list")


def test_rotations_that_make_no_sense(elm: Elm, sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rotate = ("encryption", "rotate")
    assert_one_sentence(elm(*rotate, "--data", "--new-key-file", "x"), 2, "--data makes the new key itself")
    assert_one_sentence(elm(*rotate, "--all"), 2, "--all goes with --data")
    assert_one_sentence(elm(*rotate, "--data", "--namespace", "nope"), 3, "namespace 'nope' is not in this bank")
    assert_one_sentence(elm(*rotate, "--new-key-file", "nowhere.key"), 2, "'nowhere.key' cannot be read")
    assert_one_sentence(elm(*rotate, "--new-key-env", "NO_SUCH_KEY"), 2, "NO_SUCH_KEY, which is not set")
    monkeypatch.setenv("SHORT_KEY", base64.b64encode(b"short").decode())
    assert_one_sentence(elm(*rotate, "--new-key-env", "SHORT_KEY"), 2, "a key of 5 bytes, expected 32")
    assert_one_sentence(elm(*rotate, "--home", "typo"), 3, "there is no bank in typo")
    assert error_of(elm(*rotate, "--all", "--json"))["type"] == "InputError"
    monkeypatch.delenv("ELM_ENCRYPTION__KEY_FILE")
    assert_locked(elm(*rotate, "--data"))
    fill(sealed.parent / "plain").close()
    for words in (rotate, (*rotate, "--data")):
        assert_one_sentence(elm(*words, "--home", "plain"), 2, "key")


# --- the chain ----------------------------------------------------------------------------------------------------


def test_the_history_is_shown_and_filtered(elm: Elm, bank: Bank) -> None:
    memory_id = bank.memories("default")[0].id
    bank.transition("default", memory_id, MemoryState.RETIRED, actor="ann", reason="it does harm")
    events = document(elm, "audit", "log")
    assert [event["revision"] for event in events] == list(range(1, len(events) + 1))
    [event] = document(elm, "audit", "log", "--actor", "ann", "--memory", memory_id, "--kind", "evicted")
    assert (event["note"], event["revision"]) == ("it does harm", len(events))
    assert document(elm, "audit", "log", "--limit", 1) == [event]
    assert document(elm, "audit", "log", "--since", "2000-01-01", "--until", "2000-01-02T00:00:00+02:00") == []
    assert len(document(elm, "audit", "log", "--since", "2000-01-01")) == len(events)
    assert "it does harm" in text(elm, "audit", "log")
    assert text(elm, "audit", "log", "--actor", "nobody") == "no such events\n"


def test_mistakes_at_the_history(elm: Elm, bank: Bank) -> None:
    assert bank
    assert_one_sentence(elm("audit", "log", "--kind", "nonsense"), 2, "'nonsense'")
    assert_one_sentence(elm("audit", "log", "--since", "yesterday"), 2, "'yesterday'")
    assert_one_sentence(elm("audit", "log", "--since", "0001-01-01T00:00:00+05:00"), 2, "name one after year 1")
    assert_one_sentence(elm("audit", "log", "--namespace", "nope"), 3, "'nope'")
    assert_one_sentence(elm("audit", "log", "--home", "typo"), 3, "there is no bank in typo")


def test_a_whole_chain(elm: Elm, bank: Bank) -> None:
    assert bank
    assert "whole" in text(elm, "audit", "verify")
    [chain] = document(elm, "audit", "verify")["chains"]
    assert (chain["namespace"], chain["broken"]) == ("default", None)
    every = document(elm, "audit", "verify", "--all")
    assert ([chain["namespace"] for chain in every["chains"]], every["whole"]) == (["default", "other"], True)
    assert_one_sentence(elm("audit", "verify", "--namespace", "nope"), 3, "'nope'")
    assert_one_sentence(elm("audit", "verify", "--public-key", "x"), 2, "--public-key goes with --checkpoint FILE")


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "UPDATE events SET actor = 'eve' WHERE namespace = 'default' AND revision = 3",
            "its content or its predecessor was altered",
        ),
        ("DELETE FROM events WHERE namespace = 'default' AND revision = 3", "event 3 is missing"),
    ],
)
def test_a_broken_chain_names_its_first_break(elm: Elm, bank: Bank, statement: str, words: str) -> None:
    for pinned in (True, False):
        bank.pin("default", bank.memories("default")[0].id, pinned, actor="test")
    change(bank, statement)
    result = elm("audit", "verify", "--all")
    assert result.exit_code == 4
    assert f"BROKEN at 3: {words}" in result.stdout
    assert result.stderr.startswith("error: the chain of namespace 'default' is broken at event 3: ")
    assert "1 of 2 chains are broken" in result.stderr
    assert result.stderr.count("\n") == 1
    as_json = elm("audit", "verify", "--json")
    told = json.loads(as_json.stdout)
    assert (as_json.exit_code, as_json.stderr, told["whole"]) == (4, "", False)
    assert told["chains"][0]["broken"]["revision"] == 3
    refused = elm("audit", "checkpoint", "--out", "c.json")
    assert_one_sentence(refused, 4, "is broken at event 3")
    assert not Path("c.json").exists()


# --- checkpoints --------------------------------------------------------------------------------------------------


@pytest.fixture
def signed(elm: Elm, bank: Bank) -> str:
    """The public key of ./c.json, a signed checkpoint of ``bank``."""
    assert bank
    assert elm("keys", "new", "--out", "a.pem").exit_code == 0
    assert elm("audit", "checkpoint", "--out", "c.json", "--key", "a.pem").exit_code == 0
    return str(SigningKey.read(Path("a.pem")).public)


def test_a_bank_goes_on_from_its_checkpoint(elm: Elm, bank: Bank, signed: str) -> None:
    bank.pin("default", bank.memories("default")[0].id, True, actor="test")
    against = ("audit", "verify", "--checkpoint", "c.json")
    told = document(elm, *against, "--public-key", signed)
    assert (told["whole"], told["signature"]) == (True, "its signature is good")
    assert [(chain["namespace"], chain["events_since"]) for chain in told["chains"]] == [("default", 1), ("other", 0)]
    Path("a.pub").write_text(signed)
    assert "its signature is good" in text(elm, *against, "--public-key", "a.pub")
    assert "its signature was not checked: give --public-key" in text(elm, *against)
    unsigned = text(elm, "audit", "checkpoint", "--out", "unsigned.json")
    assert "not signed: whoever can change it can forge it" in unsigned
    assert document(elm, "audit", "checkpoint", "--out", "again.json")["signature"] is None


def test_signatures_that_do_not_fit(elm: Elm, signed: str) -> None:
    against = ("audit", "verify", "--checkpoint", "c.json", "--public-key")
    other = document(elm, "keys", "new", "--out", "b.pem")["public_key"]
    assert_one_sentence(elm(*against, other), 2, f"the checkpoint was signed by {signed}, expected {other}")
    assert error_of(elm(*against, other, "--json"))["type"] == "BadSignature"
    assert_one_sentence(elm(*against, "a.pem"), 2, "a.pem is a private key")
    assert_one_sentence(elm(*against, "nowhere.pub"), 2, "'nowhere.pub' cannot be read: No such file")
    assert_one_sentence(elm(*against, "ed25519:AAAA"), 2, "cannot be read")
    taken = json.loads(Path("c.json").read_text())
    taken["chains"][0]["revision"] -= 1
    Path("c.json").write_text(json.dumps(taken))
    assert_one_sentence(elm(*against, signed), 2, "the content was altered")
    taken["signature"] = None
    Path("c.json").write_text(json.dumps(taken))
    assert_one_sentence(elm(*against, signed), 2, "the checkpoint is not signed: take one with --key")


def test_mistakes_at_checkpoints(elm: Elm, signed: str) -> None:
    before = Path("c.json").read_bytes()
    assert_one_sentence(elm("audit", "checkpoint", "--out", "c.json"), 2, "c.json exists already")
    assert Path("c.json").read_bytes() == before
    assert_one_sentence(elm("audit", "checkpoint", "--out", "no/c.json"), 2, "cannot be written: No such file")
    assert_one_sentence(
        elm("audit", "checkpoint", "--out", "d.json", "--key", "no.pem"), 2, "'no.pem' cannot be read"
    )
    Path("a.pem").chmod(0o644)
    assert_one_sentence(elm("audit", "checkpoint", "--out", "d.json", "--key", "a.pem"), 2, "(mode 0644)")
    assert not Path("d.json").exists()
    assert_one_sentence(elm("audit", "verify", "--checkpoint", "nowhere.json"), 2, "nowhere.json")
    Path("junk.json").write_text("{}")
    assert_one_sentence(elm("audit", "verify", "--checkpoint", "junk.json", "--public-key", signed), 2, "junk.json")


def test_a_chain_that_was_cut_off_does_not_fit_its_checkpoint(elm: Elm, bank: Bank, signed: str) -> None:
    with bank.database.engine.begin() as connection:  # what only a checkpoint shows: the end is gone, head and all
        last = connection.execute(
            sql("SELECT revision, digest FROM events WHERE namespace = 'default' ORDER BY revision DESC LIMIT 2")
        ).all()
        connection.execute(sql(f"DELETE FROM events WHERE namespace = 'default' AND revision = {last[0].revision}"))
        connection.execute(
            sql("UPDATE namespaces SET revision = :revision, head = :head WHERE name = 'default'"),
            {"revision": last[1].revision, "head": last[1].digest},
        )
    assert elm("audit", "verify").exit_code == 0
    against = ("audit", "verify", "--checkpoint", "c.json", "--public-key", signed)
    result = elm(*against)
    assert (result.exit_code, "BROKEN" in result.stdout) == (4, True)
    assert result.stderr.startswith("error: the chain of namespace 'default' does not go on from c.json: ")
    assert result.stderr.count("\n") == 1
    as_json = elm(*against, "--json")
    assert (as_json.exit_code, as_json.stderr, json.loads(as_json.stdout)["whole"]) == (4, "", False)
