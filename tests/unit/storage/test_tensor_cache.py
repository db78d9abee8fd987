"""Copies on this machine: verified, bounded, aged, never a reason to fail a read."""

import hashlib
import logging
import os
import time
from pathlib import Path

import pytest

from elm_agent.storage.tensors.cache import TensorCache


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def make(folder: Path, *, max_bytes: int = 10_000, max_age_seconds: float = 3600.0) -> TensorCache:
    return TensorCache(folder, max_bytes=max_bytes, max_age_seconds=max_age_seconds)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_copy_comes_back_and_namespaces_are_apart(tmp_path: Path) -> None:
    cache = make(tmp_path)
    assert cache.get("Team", digest(b"a")) is None
    cache.add("Team", digest(b"a"), b"a")
    assert cache.get("Team", digest(b"a")) == b"a"
    assert cache.get("team", digest(b"a")) is None
    assert cache.forget("team", digest(b"a")) is False
    assert cache.forget("Team", digest(b"a")) is True
    assert files(tmp_path) == []


@pytest.mark.parametrize("damage", [b"", b"b", b"aa"])
def test_a_damaged_copy_is_dropped(tmp_path: Path, damage: bytes) -> None:
    cache = make(tmp_path)
    cache.add("team", digest(b"a"), b"a")
    files(tmp_path)[0].write_bytes(damage)
    assert cache.get("team", digest(b"a")) is None
    assert files(tmp_path) == []


def test_the_least_recently_used_go_first_and_the_bound_holds(tmp_path: Path) -> None:
    cache = make(tmp_path, max_bytes=10_000)
    payloads = [bytes([n]) * 1000 for n in range(30)]
    for n, data in enumerate(payloads):
        cache.add("team", digest(data), data)
        path = tmp_path / "team" / digest(data)[7:9] / f"{digest(data)[7:]}.safetensors"
        if path.exists():
            os.utime(path, (time.time() - 100 + n, path.stat().st_mtime))
        assert cache.get("team", digest(payloads[0])) == payloads[0], "used each time, so never the oldest"
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 11_000
    assert cache.get("team", digest(payloads[1])) is None


def test_what_is_too_large_is_not_kept(tmp_path: Path) -> None:
    cache = make(tmp_path, max_bytes=10)
    cache.add("team", digest(b"x" * 11), b"x" * 11)
    assert files(tmp_path) == []


def test_an_old_copy_is_not_served_and_is_swept(tmp_path: Path) -> None:
    cache = make(tmp_path, max_age_seconds=100)
    for data in (b"old", b"older", b"young"):
        cache.add("team", digest(data), data)
    for path in files(tmp_path):
        if path.read_bytes() != b"young":
            os.utime(path, (time.time(), time.time() - 101))
    assert cache.get("team", digest(b"old")) is None
    assert cache.sweep() == 1
    assert cache.sweep() == 0
    assert [path.read_bytes() for path in files(tmp_path)] == [b"young"]


def test_another_process_sweeps_what_is_old_at_its_first_use(tmp_path: Path) -> None:
    make(tmp_path).add("team", digest(b"purged elsewhere"), b"purged elsewhere")
    (path,) = files(tmp_path)
    os.utime(path, (time.time(), time.time() - 3601))
    assert make(tmp_path).get("team", digest(b"something else")) is None
    assert files(tmp_path) == []


def test_use_does_not_make_a_copy_younger(tmp_path: Path) -> None:
    cache = make(tmp_path, max_age_seconds=100)
    cache.add("team", digest(b"a"), b"a")
    (path,) = files(tmp_path)
    os.utime(path, (time.time(), time.time() - 50))
    assert cache.get("team", digest(b"a")) == b"a"
    assert time.time() - path.stat().st_mtime >= 49


def test_a_copy_from_the_future_is_not_kept_for_ever(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.add("team", digest(b"a"), b"a")
    (path,) = files(tmp_path)
    os.utime(path, (time.time(), time.time() + 86_400))  # the clock was turned back
    assert cache.get("team", digest(b"a")) is None
    assert files(tmp_path) == []


def test_a_folder_that_takes_nothing_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "taken").write_text("a file")
    cache = make(tmp_path / "taken")
    with caplog.at_level(logging.WARNING):
        cache.add("team", digest(b"a"), b"a")
    assert "a tensor could not be cached" in caplog.text
