"""Our own stores and their twins, judged by the suites that we ship."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from elm_agent.protocols import KeyIndex, TensorStore
from elm_agent.storage.index_chroma import ChromaIndex
from elm_agent.storage.index_exact import ExactIndex
from elm_agent.storage.tensors import LocalTensors
from elm_agent.testing.conformance import KeyIndexSuite, TensorStoreSuite
from elm_agent.testing.memory_stores import MemoryIndex, MemoryTensors


class TestMemoryTensors(TensorStoreSuite):
    @pytest.fixture
    def store(self) -> MemoryTensors:
        return MemoryTensors()

    def alter(self, store: TensorStore, digest: str, data: bytes) -> None:
        assert isinstance(store, MemoryTensors)
        store.data[digest] = data


class TestLocalTensors(TensorStoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalTensors:
        return LocalTensors(tmp_path / "not" / "yet")

    def alter(self, store: TensorStore, digest: str, data: bytes) -> None:
        assert isinstance(store, LocalTensors)
        name = digest.removeprefix("sha256:")
        (store.directory / name[:2] / f"{name}.safetensors").write_bytes(data)


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
