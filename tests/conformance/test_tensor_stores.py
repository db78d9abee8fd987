"""Our tensor stores and their twin, judged by the suite that we ship."""

import secrets
from functools import partial
from pathlib import Path

import pytest
from s3 import S3Server

from elm_agent.protocols import TensorStore
from elm_agent.storage.tensors.cache import TensorCache
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.storage.tensors.remote import FsspecTensors
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


class RemoteSuite(TensorStoreSuite):
    """``FsspecTensors``; what is altered is the store, while the cache on this machine has no copy."""

    def alter(self, store: TensorStore, namespace: str, digest: str, data: bytes) -> None:
        assert isinstance(store, FsspecTensors)
        store.forget(namespace, digest)
        store._fs.pipe_file(store._path(namespace, digest), data)

    def opener(self, store: TensorStore) -> Opener:
        assert isinstance(store, FsspecTensors)
        return self.opened

    opened: Opener


def open_remote(url: str, options: dict[str, str], cache: Path | None) -> FsspecTensors:
    kept = cache and TensorCache(cache, max_bytes=1 << 20, max_age_seconds=3600)
    return FsspecTensors(url, options=options, cache=kept)


class TestMemoryUrl(RemoteSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> FsspecTensors:
        return open_remote(f"memory://{secrets.token_hex(6)}", {}, tmp_path / "cache")


class TestFileUrl(RemoteSuite):
    """Any file system that is no object store: a temporary file is moved into place."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> FsspecTensors:
        self.opened = partial(open_remote, f"file://{tmp_path}/store", {}, tmp_path / "cache")
        return self.opened()


@pytest.mark.s3
class TestS3(RemoteSuite):
    batch = 60
    rounds = 6
    patience = 300.0  # three processes load s3fs, on a machine that may be busy

    @pytest.fixture
    def store(self, s3_server: S3Server, tmp_path: Path) -> FsspecTensors:
        url = f"{s3_server.new_url()}/deeper"
        self.opened = partial(open_remote, url, {"endpoint_url": s3_server.endpoint}, tmp_path / "cache")
        return self.opened()
