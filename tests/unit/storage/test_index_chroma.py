"""One owner, a trial in a child process, and beginning anew; searching is judged in tests/conformance."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from elm_agent.errors import IndexUnavailable
from elm_agent.records import KeyKind
from elm_agent.storage.indexes.chroma import ChromaIndex
from elm_agent.testing.conformance import entries, unit_vectors

INPUT = KeyKind.INPUT


def filled(directory: Path) -> ChromaIndex:
    index = ChromaIndex(directory)
    index.apply("a", INPUT, entries(["x", "y"], unit_vectors(2)), [])
    index.acknowledge_rebuild()
    return index


def test_chromadb_is_loaded_only_when_the_index_is_used(tmp_path: Path) -> None:
    code = (
        "import sys; from elm_agent.storage.indexes.chroma import ChromaIndex; from pathlib import Path;"
        f"ChromaIndex(Path({str(tmp_path)!r})).close(); sys.exit('chromadb' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_was_fed_is_there_after_reopening(tmp_path: Path) -> None:
    filled(tmp_path / "c").close()
    index = ChromaIndex(tmp_path / "c")
    assert not index.rebuilt
    assert index.ids("a", INPUT) == {"x", "y"}
    index.close()


def test_a_new_folder_asks_to_be_fed_until_that_is_acknowledged(tmp_path: Path) -> None:
    first = ChromaIndex(tmp_path / "c")
    assert first.rebuilt
    first.close()
    second = ChromaIndex(tmp_path / "c")
    assert second.rebuilt, "a crash before the feed must not lose that it is due"
    second.acknowledge_rebuild()
    assert not second.rebuilt
    second.wipe()
    assert second.rebuilt
    second.close()


def test_only_one_owner(tmp_path: Path) -> None:
    owner, other = filled(tmp_path / "c"), ChromaIndex(tmp_path / "c")
    with pytest.raises(IndexUnavailable, match="held by another process"):
        other.search("a", INPUT, unit_vectors(1)[0], 1)
    with pytest.raises(IndexUnavailable, match="held by another process"):
        other.wipe()
    assert owner.ids("a", INPUT) == {"x", "y"}
    owner.close()
    assert other.ids("a", INPUT) == {"x", "y"}, "the owner is gone, so another may take its place"
    other.close()


def test_the_owner_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys; from elm_agent.storage.indexes.chroma import ChromaIndex; from pathlib import Path;"
        f"assert ChromaIndex(Path({str(tmp_path / 'c')!r})).rebuilt; os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    index = ChromaIndex(tmp_path / "c")
    assert index.rebuilt
    index.close()


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty", "lost metadata"])
def test_a_broken_folder_is_moved_aside_and_begun_anew(tmp_path: Path, damage: str) -> None:
    filled(tmp_path / "c").close()
    file = tmp_path / "c" / "chroma.sqlite3"
    data = file.read_bytes()
    if damage == "lost metadata":
        import sqlite3

        with sqlite3.connect(file) as connection:
            connection.execute("DELETE FROM collection_metadata")
        connection.close()
    else:
        file.write_bytes({"garbage": b"\xff" * len(data), "truncated": data[:5000], "empty": b"SQLite"}[damage])
    index = ChromaIndex(tmp_path / "c")
    assert index.rebuilt
    assert index.ids("a", INPUT) == set()
    assert (tmp_path / "c.broken").is_dir()
    index.apply("a", INPUT, entries(["z"], unit_vectors(1)), [])
    assert index.ids("a", INPUT) == {"z"}
    index.close()


def test_a_slow_trial_says_nothing_about_the_folder(tmp_path: Path) -> None:
    filled(tmp_path / "c").close()
    with pytest.raises(IndexUnavailable, match="took more than"):
        ChromaIndex(tmp_path / "c", probe_seconds=0.001).ids("a", INPUT)
    index = ChromaIndex(tmp_path / "c")
    assert index.ids("a", INPUT) == {"x", "y"}
    index.close()


def test_a_wipe_mends_a_folder_whose_files_are_garbage(tmp_path: Path) -> None:
    filled(tmp_path / "c").close()
    (tmp_path / "c" / "chroma.sqlite3").write_bytes(os.urandom(4096))
    index = ChromaIndex(tmp_path / "c")
    index.wipe()
    assert index.rebuilt
    assert index.ids("a", INPUT) == set()
    index.close()
