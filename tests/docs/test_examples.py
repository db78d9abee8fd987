"""Every example runs, in a forked process of its own, which has imported what they import already."""

from __future__ import annotations

from pathlib import Path

import pytest
import running

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("[0-9]*.py"))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, short_environment: dict[str, str], tmp_path: Path) -> None:
    printed = running.run_code(example.read_text(), str(example), tmp_path, short_environment)
    assert printed.strip()
