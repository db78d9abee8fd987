"""Malformed packs, settings and tensors end in one sentence. Larger runs: ``python tests/fuzz/run.py --help``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz_targets import TARGETS, attempt
from fuzz_watch import Watch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

RUNS = int(os.environ.get("ELM_FUZZ_RUNS", "500"))
RUN = Path(__file__).with_name("run.py")


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[bytes], None]]:
    return {name: made(tmp_path_factory.mktemp(name)) for name, made in TARGETS.items()}


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_what_hypothesis_finds(targets: dict[str, Callable[[bytes], None]], name: str, data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zipfile's, of the doubled names that we make
        attempt(targets[name], data)


@pytest.mark.parametrize("name", TARGETS)
def test_many_inputs_no_traceback_nothing_outside(name: str) -> None:
    """By atheris where it is installed, else by random edits."""
    command = [sys.executable, str(RUN), "--target", name, "--runs", str(RUNS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["inputs"] == report["accepted"] + report["refused"] == RUNS
    assert (report["crashes"], report["outside"]) == (0, 0)
    assert report["accepted"] > 0, "edits that all fail test only the first check"


def test_the_witness_sees_what_happens_outside(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    watch = Watch(inside)
    with watch.armed():
        (inside / "a").write_text("fine")
        (inside / "a").read_text()
        assert watch.seen == []
        (inside / ".." / "b").write_text("not fine")
        outside.mkdir()
        os.replace(inside / "a", outside / "a")
        (inside / "link").symlink_to(outside)
        (inside / "link" / "c").write_text("not fine")
        subprocess.run([sys.executable, "-c", ""], check=True)
    kinds = [seen.split(":")[0] for seen in watch.seen]
    assert kinds[:5] == ["open for writing", "os.mkdir", "os.rename", "os.symlink", "open for writing"]
    assert "subprocess.Popen" in kinds


def test_another_error_is_a_crash() -> None:
    def bad(data: bytes) -> None:
        raise RuntimeError(data)

    with pytest.raises(RuntimeError):
        attempt(bad, b"")


# --- what was found, kept -----------------------------------------------------------------------------------


def test_a_tensor_file_cannot_make_a_long_message(tmp_path: Path) -> None:
    """An unknown key of 10,000 characters came back whole in the message of the library that reads the header."""
    header = json.dumps({"prompt": {"dtype": "x" * 10_000, "shape": [2, 16], "data_offsets": [0, 128]}}).encode()
    target = TARGETS["safetensors"](tmp_path)
    raw = b"\x00\x00" + len(header).to_bytes(8, "little") + header + bytes(128)
    assert attempt(target, raw) is False
