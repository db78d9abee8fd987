"""Our own indexes and their twin, judged by the suite that we ship."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from elm_agent.protocols import KeyIndex
from elm_agent.storage.index_chroma import ChromaIndex
from elm_agent.storage.index_exact import ExactIndex
from elm_agent.testing.conformance import KeyIndexSuite
from elm_agent.testing.memory_stores import MemoryIndex


class TestMemoryIndex(KeyIndexSuite):
    batch = 300

    @pytest.fixture
    def index(self) -> MemoryIndex:
        return MemoryIndex()


class TestExactIndex(KeyIndexSuite):
    @pytest.fixture
    def index(self) -> ExactIndex:
        return ExactIndex()


class TestChromaIndex(KeyIndexSuite):
    @pytest.fixture
    def index(self, tmp_path: Path) -> Iterator[KeyIndex]:
        made = ChromaIndex(tmp_path / "chroma")
        yield made
        made.close()
