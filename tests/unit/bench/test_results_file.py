"""The results file survives a kill at any byte, and never touches a file that something else wrote."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from elm_agent.bench.results import ResultsFile
from elm_agent.errors import InputError, StorageError, StoreBusy


def record(line: int, **more: object) -> dict[str, object]:
    return {"line": line, "question_digest": f"sha256:{line}", "status": "answered", "text": "naïve – 日本", **more}


def write(path: Path, count: int) -> bytes:
    results = ResultsFile(path)
    for line in range(1, count + 1):
        results.append(record(line))
    results.close()
    return path.read_bytes()


def test_records_come_back(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", 3)
    with ResultsFile(tmp_path / "r.jsonl") as results:
        assert results.records == {line: record(line) for line in (1, 2, 3)}
        assert not results.mended


def test_a_file_cut_at_any_byte_is_mended(tmp_path: Path) -> None:
    """What was whole stays, what was cut goes, and the next record stands on a line of its own."""
    path = tmp_path / "r.jsonl"
    data = write(path, 2)
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        results = ResultsFile(path)
        whole = data[:cut].count(b"\n") + (data[cut : cut + 1] == b"\n")  # only its end is missing: it counts
        assert sorted(results.records) == list(range(1, whole + 1))
        assert results.mended == (cut > 0 and data[:cut][-1:] != b"\n" and data[cut : cut + 1] != b"\n")
        results.append(record(9))
        results.close()
        assert [json.loads(line)["line"] for line in path.read_text("utf-8").splitlines()] == [
            *range(1, whole + 1),
            9,
        ]


@pytest.mark.parametrize(
    "content",
    [
        b'{"question": "What is 1 + 1?"}\n',
        b'{"question": "no end"}',
        b"plain words\n",
        b"[1]\n",
        b"\xff\xfe\n",
        b"words",
    ],
)
def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"line 1 of .*mine\.txt is not a record"):
        ResultsFile(path)
    assert path.read_bytes() == content


def test_two_writers_are_refused(tmp_path: Path) -> None:
    first = ResultsFile(tmp_path / "r.jsonl")
    with pytest.raises(StoreBusy, match="another run"):
        ResultsFile(tmp_path / "r.jsonl")
    first.close()
    ResultsFile(tmp_path / "r.jsonl").close()


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = ResultsFile(tmp_path / "r.jsonl")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="cannot be written: No space left"):
        results.append(record(1))
    assert results.records == {}
    results.close()


def test_a_folder_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").mkdir()
    with pytest.raises(StorageError, match="cannot be opened"):
        ResultsFile(tmp_path / "r.jsonl")


def test_half_a_surrogate_pair_is_kept_as_its_escape(tmp_path: Path) -> None:
    with ResultsFile(tmp_path / "r.jsonl") as results:
        results.append(record(1, question="\ud800"))
    with ResultsFile(tmp_path / "r.jsonl") as results:
        assert results.records[1]["question"] == "\ud800"
