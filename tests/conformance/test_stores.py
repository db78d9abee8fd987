"""Our own indexes and their twin, judged by the suite that we ship."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
from servers import KeptChroma
from sqlalchemy import make_url

from elm_agent.protocols import IndexEntry, KeyIndex
from elm_agent.records import KeyKind
from elm_agent.storage.indexes.chroma import ChromaIndex
from elm_agent.storage.indexes.chroma_server import ChromaServerIndex
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.indexes.pgvector import PgvectorIndex
from elm_agent.storage.indexes.qdrant import QdrantIndex
from elm_agent.storage.indexes.server_urls import ServerUrl, parse_server_url
from elm_agent.storage.indexes.snapshots import Mark
from elm_agent.storage.sql.database import Database
from elm_agent.testing.conformance import KeyIndexSuite
from elm_agent.testing.index_processes import Opener
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


class Remapped(ExactIndex):
    """Writes a snapshot after every change and goes on from the file."""

    def apply(self, namespace: str, kind: KeyKind, upsert: Iterable[IndexEntry], delete: Iterable[str]) -> None:
        super().apply(namespace, kind, upsert, delete)
        self.keep(namespace, kind, Mark(1, "test"), lambda: True)


class TestMappedIndex(KeyIndexSuite):
    @pytest.fixture
    def index(self, tmp_path: Path) -> Iterator[KeyIndex]:
        made = Remapped(tmp_path / "index")
        yield made
        made.close()

    def folder(self, index: KeyIndex) -> Path:
        assert isinstance(index, Remapped)
        return index.directory


class TestChromaIndex(KeyIndexSuite):
    kills = 2  # each opening tries the folder in a process of its own

    @pytest.fixture
    def index(self, tmp_path: Path) -> Iterator[KeyIndex]:
        made = ChromaIndex(tmp_path / "chroma")
        yield made
        made.close()

    def opener(self, index: KeyIndex) -> Opener:
        assert isinstance(index, ChromaIndex)
        return partial(ChromaIndex, index.directory)

    def folder(self, index: KeyIndex) -> Path:
        assert isinstance(index, ChromaIndex)
        return index.directory


class TestChromaServerIndex(KeyIndexSuite):
    batch = 1500
    kills = 1  # each process loads the client anew

    @pytest.fixture
    def index(self, chroma_server: KeptChroma, tmp_path: Path) -> Iterator[KeyIndex]:
        made = ChromaServerIndex(server_url(chroma_server.index, tmp_path))
        yield made
        made.wipe()
        made.close()

    def opener(self, index: KeyIndex) -> Opener:
        assert isinstance(index, ChromaServerIndex)
        return partial(ChromaServerIndex, index.url)


@pytest.mark.postgres
class TestPgvectorIndex(KeyIndexSuite):
    @pytest.fixture
    def index(self, pgvector_url: str) -> Iterator[KeyIndex]:
        database = Database.open(pgvector_url)
        yield PgvectorIndex(database)
        database.close()

    def opener(self, index: KeyIndex) -> Opener:
        assert isinstance(index, PgvectorIndex)
        return partial(open_pgvector, index.url)


class TestQdrantIndex(KeyIndexSuite):
    @pytest.fixture
    def index(self, qdrant_server: str, tmp_path: Path) -> Iterator[KeyIndex]:
        made = QdrantIndex(server_url(qdrant_server, tmp_path))
        yield made
        made.wipe()
        made.close()

    def opener(self, index: KeyIndex) -> Opener:
        assert isinstance(index, QdrantIndex)
        return partial(QdrantIndex, index.url)


class TestQdrantLocally(KeyIndexSuite):
    """Our code without a server: the embedded mode of the client answers in its place."""

    batch = 300
    kills = 1

    @pytest.fixture
    def index(self, tmp_path: Path) -> Iterator[KeyIndex]:
        made = QdrantIndex(ServerUrl("qdrant", "nowhere", 0, False, "bank"), folder=tmp_path / "qdrant")
        yield made
        made.close()

    def opener(self, index: KeyIndex) -> Opener:
        assert isinstance(index, QdrantIndex)
        return partial(QdrantIndex, index.url, folder=index.folder)


def server_url(index: str, folder: Path) -> ServerUrl:
    """A bank of its own for every test."""
    return parse_server_url(index, make_url(f"sqlite:///{folder}"))


def open_pgvector(url: str) -> PgvectorIndex:
    return PgvectorIndex(Database.open(url))
