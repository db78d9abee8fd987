"""Agents and workers together: nothing is lost, nothing is done twice, no reader is behind."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from crowd import run

OPERATIONS = int(os.environ.get("ELM_CROWD_OPERATIONS", "240"))


def test_a_crowd_on_one_bank(database_url: str, tmp_path: Path) -> None:
    found = run(database_url, tmp_path, OPERATIONS)
    assert found == replace(found, jobs_lost=0, jobs_doubled=0, uses_lost=0, behind=(), chain_faults=0)
    assert (found.operations, found.memories) == (OPERATIONS, found.jobs)
    assert found.uses > OPERATIONS // 3
