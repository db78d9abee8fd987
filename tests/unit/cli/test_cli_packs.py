"""``export`` and ``import`` on real banks, each call as a user makes it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Elm, assert_one_sentence, error_of

from elm_agent.records import MemoryKeys, Recipe
from elm_agent.runtime import open_bank
from elm_agent.settings import Settings
from elm_agent.storage.adopt import Adopted
from elm_agent.testing.doubles import WIDTH, fake_fingerprint, unit_vector


@pytest.fixture
def ids(tmp_path: Path) -> list[str]:
    """Three active memories in ./.elm; their ids."""
    import torch

    from elm_agent.records import MemoryState
    from elm_agent.softprompt import SoftPrompt

    bank = open_bank(Settings(home=tmp_path / ".elm", index="exact"))
    bank.bind("default", fake_fingerprint())
    items = [
        Adopted(
            question=f"question {n}",
            task="math",
            prompt=SoftPrompt(torch.full((2, WIDTH), float(n + 1))),
            keys=MemoryKeys(input=unit_vector(f"question {n}", WIDTH), kv=None),
            model=fake_fingerprint(),
            recipe=Recipe(virtual_tokens=2),
            origin="test",
            state=MemoryState.ACTIVE,
        )
        for n in range(3)
    ]
    made = [memory_id for memory_id, _ in bank.adopt("default", items, actor="test")]
    bank.close()
    return made


def document(elm: Elm, *words: object) -> Any:
    result = elm(*words, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return json.loads(result.stdout)


def test_a_pack_goes_from_bank_to_bank(elm: Elm, ids: list[str]) -> None:
    exported = document(elm, "export", "a.elmpack")
    assert (exported["memories"], exported["signed_by"]) == (3, None)
    away = ("--home", "away")
    assert_one_sentence(elm("import", "a.elmpack", *away), 3, "there is no bank")
    looked = document(elm, "import", "a.elmpack", *away, "--new", "--dry-run")
    assert (looked["new"], looked["known"], looked["ids"]) == (3, 0, [])
    taken = document(elm, "import", "a.elmpack", *away, "--new")
    assert {old for old, _ in taken["ids"]} == set(ids)
    listed = document(elm, "memories", "list", *away)
    assert {memory["origin"] for memory in listed} == {f"pack:{exported['pack_id']} unsigned"}
    assert {memory["state"] for memory in listed} == {"candidate"}
    assert document(elm, "import", "a.elmpack", *away)["known"] == 3


def test_what_it_says_to_people(elm: Elm, ids: list[str]) -> None:
    assert elm("keys", "new", "--out", "key.pem").exit_code == 0
    said = elm("export", "a.elmpack", "--memory", ids[0], "--sign", "key.pem", "--no-episodes")
    assert "exported 1 memories to a.elmpack" in said.stdout
    assert "signed by sha256:" in said.stdout
    assert "without episodes" in said.stdout
    looked = elm("import", "a.elmpack", "--dry-run")
    assert "1: 0 would be new, 1 known" in looked.stdout
    assert "good, by sha256:" in looked.stdout


def test_every_refusal_is_one_sentence(elm: Elm, ids: list[str], tmp_path: Path) -> None:
    assert elm("export", "a.elmpack").exit_code == 0
    assert_one_sentence(elm("export", "a.elmpack"), 2, "--force")
    assert_one_sentence(elm("export", "b.elmpack", "--memory", "../x"), 3, "no memory")
    assert_one_sentence(elm("export", "b.elmpack", "--sign", "nothing"), 2, "nothing")
    assert_one_sentence(elm("export", "b.elmpack", "--state", "retired"), 2, "no retired memories")
    assert_one_sentence(elm("export", "no/b.elmpack"), 2, "its folder is not there")
    assert_one_sentence(elm("import", "b.elmpack"), 2, "not there")
    assert_one_sentence(elm("import", "a.elmpack", "--public-key", "ed25519:x"), 2, "public key")
    assert_one_sentence(elm("import", "a.elmpack", "--namespace", "x"), 3, "--new")
    assert_one_sentence(elm("import", "a.elmpack", "--namespace", "../x", "--new"), 2, "namespace")
    (tmp_path / "b.elmpack").write_bytes((tmp_path / "a.elmpack").read_bytes()[:-1])
    assert error_of(elm("import", "b.elmpack", "--json"))["type"] == "InputError"
    assert sorted(os.listdir(tmp_path)) == [".elm", "a.elmpack", "b.elmpack"]
    assert len(document(elm, "memories", "list")) == len(ids)
