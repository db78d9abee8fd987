"""Where the banks of the histories lie: every database, index, tensor store and vault at least once."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest
from bank_model import SHARED
from postgres import fresh_database
from sqlalchemy import make_url

from elm_agent.protocols import TensorStore
from elm_agent.storage.bank import Bank
from elm_agent.storage.indexes.chroma import ChromaIndex
from elm_agent.storage.indexes.chroma_server import ChromaServerIndex
from elm_agent.storage.indexes.exact import ExactIndex
from elm_agent.storage.indexes.feed import FedIndex
from elm_agent.storage.indexes.pgvector import PgvectorIndex
from elm_agent.storage.indexes.qdrant import QdrantIndex
from elm_agent.storage.indexes.server_urls import ServerUrl, parse_server_url
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.cache import TensorCache
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.storage.tensors.remote import FsspecTensors
from elm_agent.storage.vault.opening import open_vault

_AUTO = 4  # active memories of a namespace from which on 'auto' asks the durable index


@dataclass(frozen=True, slots=True)
class BackEnd:
    """One combination. ``auto``: small namespaces are scanned, larger ones asked of the index."""

    database: str
    index: str
    tensors: str = "folder"
    sealed: bool = False
    auto: bool = False

    def __str__(self) -> str:
        index = f"auto-{self.index}" if self.auto else self.index
        return f"{self.database}-{index}-{self.tensors}{'-sealed' if self.sealed else ''}"


BACK_ENDS = (
    BackEnd("sqlite", "exact"),
    BackEnd("sqlite", "chroma", sealed=True),
    BackEnd("sqlite", "qdrant", "memory"),
    BackEnd("sqlite", "chroma_server", "file", sealed=True, auto=True),
    BackEnd("postgres", "exact", sealed=True),
    BackEnd("postgres", "chroma_server", "s3"),
    BackEnd("postgres", "pgvector", "file"),
)


@dataclass
class Place:
    """An empty place for the bank of one history."""

    back_end: BackEnd
    url: str
    home: Path
    servers: dict[str, Any]
    closing: ExitStack
    masters: list[bytes] = field(default_factory=lambda: [b"k" * 32])

    @property
    def sealed(self) -> bool:
        return self.back_end.sealed

    def open(self, *, owner: bool = True) -> Bank:
        """A bank on this place. ``owner=False``: a second one beside it; an embedded index is not open there."""
        database = Database.open(self.url)
        vault = open_vault(database, function=self._master) if self.sealed else None
        options: dict[str, Any] = {"vault": vault, "shared": SHARED, "exact_limit": _AUTO}
        if self.back_end.index == "exact":
            options |= {"index": "exact", "exact": ExactIndex(self.home / "index", keep_above=3)}
        elif (durable := self._durable(database, owner)) is not None:
            options |= {"index": "auto" if self.back_end.auto else "durable", "durable": durable}
        else:
            options |= {"index": "auto", "exact_limit": 10**6}
        return Bank(database, self._tensors(), **options)

    def add_master(self, seed: int) -> None:
        """The newest master key is for new work; the older ones still open what they wrapped."""
        self.masters.append(hashlib.sha256(f"{len(self.masters)} {seed}".encode()).digest())

    def remove(self) -> None:
        self.closing.close()

    def _master(self, master_id: str | None) -> bytes:
        from elm_agent.storage.vault.master_keys import MasterKey

        named = [secret for secret in self.masters if MasterKey(secret).id == master_id]
        return named[0] if named else self.masters[-1]

    def _durable(self, database: Database, owner: bool) -> FedIndex | None:
        kind = self.back_end.index
        if kind == "chroma_server":
            return ChromaServerIndex(parse_server_url(self.servers["chroma_server"].index, database.engine.url))
        if kind == "pgvector":
            return PgvectorIndex(database)
        if not owner:
            return None
        if kind == "chroma":
            return ChromaIndex(self.home / "chroma")
        return QdrantIndex(ServerUrl("qdrant", "nowhere", 0, False, "bank"), folder=self.home / "qdrant")

    def _tensors(self) -> TensorStore:
        if self.back_end.tensors == "folder":
            return LocalTensors(self.home / "tensors")
        cache = TensorCache(self.home / "cache", max_bytes=1 << 24, max_age_seconds=86400)
        if self.back_end.tensors == "file":
            return FsspecTensors((self.home / "tensors").as_uri(), cache=cache)
        if self.back_end.tensors == "memory":
            return FsspecTensors(f"memory://{self.home.name}")
        endpoint = self.servers["s3_server"].endpoint
        return FsspecTensors(self.servers["s3_url"], options={"endpoint_url": endpoint}, cache=cache)


class Places:
    """New places on servers that are started once, with copies of a database that was migrated once."""

    def __init__(self, back_end: BackEnd, request: pytest.FixtureRequest) -> None:
        self.back_end = back_end
        self._all = ExitStack()
        wanted = {"chroma_server": back_end.index, "s3_server": f"{back_end.tensors}_server"}
        self._servers = {name: request.getfixturevalue(name) for name, used in wanted.items() if used == name}
        self._new_database = self._postgres(request) if back_end.database == "postgres" else self._sqlite()

    def new(self) -> Place:
        closing = self._all.enter_context(ExitStack())
        home = Path(tempfile.mkdtemp(prefix="elm-stateful-"))
        closing.callback(shutil.rmtree, home)
        url = self._new_database(home, closing)
        servers = dict(self._servers)
        if "s3_server" in servers:
            servers["s3_url"] = servers["s3_server"].new_url()
        if self.back_end.tensors == "memory":
            closing.callback(fsspec.filesystem("memory").store.clear)
        if "chroma_server" in servers:
            index = ChromaServerIndex(parse_server_url(servers["chroma_server"].index, make_url(url)))
            closing.callback(index.close)
            closing.callback(index.wipe)
        return Place(self.back_end, url, home, servers, closing)

    def close(self) -> None:
        self._all.close()

    def _sqlite(self) -> Callable[[Path, ExitStack], str]:
        folder = Path(self._all.enter_context(tempfile.TemporaryDirectory(prefix="elm-stateful-")))
        template = folder / "bank.sqlite"
        Database.open(f"sqlite:///{template}").close()

        def new(home: Path, _: ExitStack) -> str:
            shutil.copy(template, home / template.name)
            return f"sqlite:///{home / template.name}"

        return new

    def _postgres(self, request: pytest.FixtureRequest) -> Callable[[Path, ExitStack], str]:
        server = request.getfixturevalue(
            "pgvector_server" if self.back_end.index == "pgvector" else "postgres_server"
        )
        template = self._all.enter_context(fresh_database(server))
        Database.open(template).close()
        return lambda _, closing: closing.enter_context(fresh_database(server, template=template))
