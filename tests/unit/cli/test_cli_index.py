"""``elm-agent index`` on a bank with two memories."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from elm_agent.bench.filling import NoTensors, fill, model_of
from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.database import Database


def run(folder: Path, *words: str, status: int = 0) -> dict[str, object]:
    command = [sys.executable, "-m", "elm_agent.cli", "index", *words, "--home", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == status, done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    return document


def test_status_and_rebuild(tmp_path: Path) -> None:
    bank = Bank(Database.open(f"sqlite:///{tmp_path}/elm.sqlite"), NoTensors(), index="exact")
    for namespace in ("default", "other"):
        bank.bind(namespace, model_of(4))
        assert sum(fill(bank, namespace, np.random.default_rng(0), 3, 4)) == 3
    bank.close()
    before = run(tmp_path, "status")["indexes"]
    assert isinstance(before, list)
    assert [(row["namespace"], row["in_use"], row["behind"] > 0) for row in before] == [
        ("default", True, True),
        ("other", True, True),
    ]
    assert run(tmp_path, "rebuild", "--namespace", "other")["keys"] == {"other": 3}
    assert run(tmp_path, "rebuild")["keys"] == {"default": 3, "other": 3}
    after = run(tmp_path, "status", "--namespace", "default")["indexes"]
    assert isinstance(after, list)
    assert [(row["entries"], row["behind"], row["problem"]) for row in after] == [({"input": 3, "kv": 0}, 0, None)]
    error = run(tmp_path, "rebuild", "--namespace", "nobody", status=3)["error"]
    assert "not in this bank" in str(error)
