"""Our tensor stores and their twin, judged by the suite that we ship."""

from functools import partial
from pathlib import Path

import pytest

from elm_agent.protocols import TensorStore
from elm_agent.storage.tensors import LocalTensors
from elm_agent.testing.conformance import TensorStoreSuite
from elm_agent.testing.memory_stores import MemoryTensors
from elm_agent.testing.tensor_suite import Opener


class TestMemoryTensors(TensorStoreSuite):
    @pytest.fixture
    def store(self) -> MemoryTensors:
        return MemoryTensors()

    def alter(self, store: TensorStore, namespace: str, digest: str, data: bytes) -> None:
        assert isinstance(store, MemoryTensors)
        store.data[namespace, digest] = data


class TestLocalTensors(TensorStoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalTensors:
        return LocalTensors(tmp_path / "not" / "yet")

    def alter(self, store: TensorStore, namespace: str, digest: str, data: bytes) -> None:
        assert isinstance(store, LocalTensors)
        store.path(namespace, digest).write_bytes(data)

    def opener(self, store: TensorStore) -> Opener:
        assert isinstance(store, LocalTensors)
        return partial(LocalTensors, store.directory)
