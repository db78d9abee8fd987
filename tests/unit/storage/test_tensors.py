"""What is particular to tensors as files; the promises of any store are in tests/conformance."""

import os
from pathlib import Path

import pytest
import torch

from elm_agent.errors import StorageError, TensorCorrupt
from elm_agent.softprompt import content_digest, from_bytes, to_bytes
from elm_agent.storage.tensors import local
from elm_agent.storage.tensors.local import LocalTensors


@pytest.fixture
def store(tmp_path: Path) -> LocalTensors:
    return LocalTensors(tmp_path / "tensors")


def test_the_file_is_named_by_its_content(store: LocalTensors) -> None:
    data = to_bytes(torch.ones(3, 4))
    digest = store.put("Team", data)
    name = digest.removeprefix("sha256:")
    assert digest == content_digest(data)
    assert (store.directory / "+team" / name[:2] / f"{name}.safetensors").read_bytes() == data


def test_a_stored_prompt_comes_back_as_it_was(store: LocalTensors) -> None:
    prompt_VE = torch.randn(5, 8)
    digest = store.put("Team", to_bytes(prompt_VE))
    assert torch.equal(from_bytes(store.get("Team", digest), shape=(5, 8)).prompt_VE, prompt_VE)
    with pytest.raises(TensorCorrupt, match=r"expected a prompt of shape \(8, 5\); got \(5, 8\)"):
        from_bytes(store.get("Team", digest), shape=(8, 5))


def test_a_deletion_is_durable(store: LocalTensors, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = store.put("Team", b"bytes")
    folder, synced = store.path("Team", digest).parent, []
    monkeypatch.setattr(local, "sync_folder", lambda path: synced.append((path, list(path.iterdir()))))
    assert store.delete("Team", digest)
    assert synced == [(folder, [])]


def test_left_temporary_files_are_swept_by_age(store: LocalTensors) -> None:
    kept = store.put("Team", b"kept")
    folder = store.directory / "+team" / "ab"
    folder.mkdir()
    for name, age in (("old", 7200), ("new", 0)):
        part = folder / f"{name}.part"
        part.write_bytes(b"half")
        os.utime(part, (part.stat().st_atime, part.stat().st_mtime - age))
    assert store.temporary(3600) == ["+team/ab/old.part"]
    assert store.sweep(3600) == ["+team/ab/old.part"]
    assert store.sweep(-1) == ["+team/ab/new.part"]
    assert list(store.digests("Team")) == [kept]


def test_foreign_files_are_not_listed(store: LocalTensors) -> None:
    digest = store.put("Team", b"ours")
    folder = store.directory / "+team" / "ab"
    folder.mkdir()
    for name in ("README.safetensors", "f" * 64 + ".safetensors", "x" * 64 + ".safetensors"):
        (folder / name).write_bytes(b"theirs")
    assert list(store.digests("Team")) == [digest]


def test_a_folder_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match="could not be stored") as caught:
        LocalTensors(tmp_path / "taken").put("Team", b"data")
    assert "\n" not in str(caught.value)
