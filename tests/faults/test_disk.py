"""Disks that are full, read-only or that changed what they were given."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from elm_agent.errors import StorageError
from elm_agent.storage.tensors import LocalTensors


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def remount_read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(small_disk: Path) -> None:
    store = LocalTensors(small_disk)
    kept = store.put(b"k" * 1000)
    with pytest.raises(StorageError) as caught:
        store.put(b"x" * 1_000_000)
    assert str(caught.value) == (
        f"a tensor of 1000000 bytes could not be stored: the disk of {small_disk} is full; "
        "free some space and run the same command again"
    )
    assert store.temporary(-1) == []
    assert list(store.digests()) == [kept]
    assert store.get(kept) == b"k" * 1000
    assert store.get(store.put(b"y" * 100_000)) == b"y" * 100_000, "what was half written gave its space back"


def test_a_disk_that_became_read_only_can_be_read(small_disk: Path) -> None:
    store = LocalTensors(small_disk)
    kept = store.put(b"kept")
    remount_read_only(small_disk)
    with pytest.raises(StorageError, match=r"could not be stored: .* is not accessible \(Read-only file system\)"):
        store.put(b"more")
    with pytest.raises(StorageError, match="could not be deleted"):
        store.delete(kept)
    assert store.get(kept) == b"kept"
    assert list(store.digests()) == [kept]


def test_a_folder_without_permission_is_one_sentence() -> None:
    with tempfile.TemporaryDirectory() as name, ordinary_user():  # pytest's own folders are closed to others
        folder = Path(name)
        with pytest.raises(StorageError, match=r"is not accessible \(Permission denied\)"):
            LocalTensors(folder / "locked").put(b"data")


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may write everywhere; be nobody for a while."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user than the owner of the folder")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
