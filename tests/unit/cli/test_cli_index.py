"""``elm-agent index`` on a bank with two memories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from cli_calls import Elm

from elm_agent.bench.filling import NoTensors, fill, model_of
from elm_agent.storage.bank import Bank
from elm_agent.storage.sql.database import Database


def run(elm: Elm, *words: str, status: int = 0) -> dict[str, object]:
    done = elm("index", *words, "--home", ".", "--json")
    assert done.exit_code == status, done.output
    document: dict[str, object] = json.loads(done.stdout)
    return document


def test_status_and_rebuild(elm: Elm, tmp_path: Path) -> None:
    bank = Bank(Database.open(f"sqlite:///{tmp_path}/elm.sqlite"), NoTensors(), index="exact")
    for namespace in ("default", "other"):
        bank.bind(namespace, model_of(4))
        assert sum(fill(bank, namespace, np.random.default_rng(0), 3, 4)) == 3
    bank.close()
    before = run(elm, "status")["indexes"]
    assert isinstance(before, list)
    assert [(row["namespace"], row["in_use"], row["behind"] > 0) for row in before] == [
        ("default", True, True),
        ("other", True, True),
    ]
    assert run(elm, "rebuild", "--namespace", "other")["keys"] == {"other": 3}
    assert run(elm, "rebuild")["keys"] == {"default": 3, "other": 3}
    after = run(elm, "status", "--namespace", "default")["indexes"]
    assert isinstance(after, list)
    assert [(row["entries"], row["behind"], row["problem"]) for row in after] == [({"input": 3, "kv": 0}, 0, None)]
    error = run(elm, "rebuild", "--namespace", "nobody", status=3)["error"]
    assert "not in this bank" in str(error)
