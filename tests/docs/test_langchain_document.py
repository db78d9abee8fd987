"""docs/langchain.md: five lines make an agent, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "langchain.md").read_text("utf-8")


def test_an_agent_with_memory_is_five_lines() -> None:
    first = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[0]
    assert len([line for line in first.splitlines() if line.strip()]) == 5


def test_files_that_are_named_exist() -> None:
    named = re.findall(r"`((?:examples|tests)/[\w./]+)`", TEXT)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
