"""Nearest keys in a Qdrant server, which any number of processes and hosts may ask. Knows nothing of SQL.

One collection for each namespace and key kind, so that no search can cross a namespace; one more, empty, is the mark
that the bank was fed (``rebuilt``). Qdrant names points by UUID: ours is made of the memory's id, which the payload
holds. Keys wider than 65,535 are projected (see ``projection``). The key of a server that wants one comes from the
environment, ``QDRANT_API_KEY``.
"""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from elm_agent.errors import ElmError, IndexUnavailable
from elm_agent.protocols import IndexCapability, IndexEntry
from elm_agent.records import Hit, KeyKind, Vector
from elm_agent.storage.indexes import projection
from elm_agent.storage.indexes.feed import IndexMadeAnew, once_more
from elm_agent.storage.indexes.key_table import check_vector
from elm_agent.storage.indexes.server_urls import ServerUrl

KEY = "QDRANT_API_KEY"

_SPACE = uuid.UUID("6f0cb8a0-7d7b-4c55-a5a0-2a1f6f1f7f11")  # of our point ids; never changed
_CHUNK = 500
_PAGE = 10_000
_SLACK = 32  # hits fetched beyond k, so that ties at the border are decided by id
_MOST = 10_000  # hits that are ever asked for


class QdrantIndex:
    """A ``KeyIndex`` on the server of ``url``, connected at first use. Approximate: the caller re-checks its hits.

    ``folder``: the client's own embedded mode instead of a server, for one process and for trying things out.
    ``seconds``: how long the server may take for an answer before it counts as unreachable.
    """

    width_limit: int | None = 65_535

    def __init__(self, url: ServerUrl, *, folder: Path | None = None, seconds: float = 30.0) -> None:
        self.url = url
        self.name = url.index_name
        self.folder = folder
        shared = {IndexCapability.SHARED} if folder is None else set()
        self.capabilities = frozenset({IndexCapability.BASE, IndexCapability.DURABLE, *shared})
        self._seconds = seconds
        self._client: Any = None
        self._widths: dict[str, int] = {}
        self._lock = threading.RLock()

    @property
    def rebuilt(self) -> bool:
        """Whether the server does not know this bank, or was never fed to the end. Raises ``IndexUnavailable``."""
        with self._open() as client:
            return not client.collection_exists(self._mark)

    def acknowledge_rebuild(self) -> None:
        with self._open() as client:
            self._create(client, self._mark, 1, 1)

    def apply(self, namespace: str, kind: KeyKind, upsert: Iterable[IndexEntry], delete: Iterable[str]) -> None:
        """See ``KeyIndex``. Upserts apply before deletions; an error in between leaves whole entries only.

        Raises:
            InputError: a vector of another dtype or width; then nothing changed.
            IndexUnavailable: the server cannot be asked or failed.
        """
        once_more(partial(self._apply, namespace, kind, list(upsert), list(delete)))

    def _apply(self, namespace: str, kind: KeyKind, upsert: list[IndexEntry], delete: list[str]) -> None:
        vectors = {entry.memory_id: entry.vector for entry in upsert}
        ids, gone = list(vectors), [_point(memory_id) for memory_id in delete]
        first = check_vector(vectors[ids[0]]).shape[0] if ids else None
        collection = self._name(namespace, kind)
        with self._open() as client:
            from qdrant_client import models

            width = self._width(client, collection)
            if width is None:
                if first is None:
                    return
                width = first
            for vector in vectors.values():
                check_vector(vector, width)
            self._create(client, collection, width, self._stored(width))
            for start in range(0, len(ids), _CHUNK):
                points = [
                    models.PointStruct(
                        id=_point(name), vector=self._narrow(vectors[name]).tolist(), payload={"id": name}
                    )
                    for name in ids[start : start + _CHUNK]
                ]
                client.upsert(collection, points, wait=True)
            for start in range(0, len(gone), _CHUNK):
                selector = models.PointIdsList(points=list(gone[start : start + _CHUNK]))
                client.delete(collection, selector, wait=True)

    def search(self, namespace: str, kind: KeyKind, query: Vector, k: int) -> list[Hit]:
        """See ``KeyIndex``. Raises ``InputError`` when the query does not fit the keys."""
        collection = self._name(namespace, kind)
        with self._open() as client:
            from qdrant_client import models

            width = self._width(client, collection)
            if width is None:
                return []
            check_vector(query, width)
            if k < 1:
                return []
            wanted = min(2 * k + _SLACK, _MOST)
            graph = models.SearchParams(hnsw_ef=max(wanted, 256)) if self.folder is None else None  # it has no graph
            found = client.query_points(
                collection,
                query=self._narrow(query).tolist(),
                limit=wanted,
                with_payload=True,
                search_params=graph,
            ).points
        hits = [Hit(point.payload["id"], min(1.0, max(-1.0, float(point.score)))) for point in found]
        hits.sort(key=lambda hit: (-hit.similarity, hit.memory_id))
        return hits[:k]

    def ids(self, namespace: str, kind: KeyKind) -> set[str]:
        return once_more(partial(self._ids, namespace, kind))

    def _ids(self, namespace: str, kind: KeyKind) -> set[str]:
        collection = self._name(namespace, kind)
        names: set[str] = set()
        with self._open() as client:
            if self._width(client, collection) is None:
                return names
            offset = None
            while True:
                page, offset = client.scroll(collection, limit=_PAGE, offset=offset, with_payload=True)
                names.update(point.payload["id"] for point in page)
                if offset is None:
                    return names

    def scrub(self, namespace: str) -> bool:
        """Drop the collections of the namespace. When the server's disk lets go of their bytes is its own matter."""
        with self._open() as client:
            for kind in KeyKind:
                client.delete_collection(self._name(namespace, kind))
                self._widths.pop(self._name(namespace, kind), None)
        return True

    def wipe(self) -> None:
        """Drop every collection of this bank, and no other."""
        with self._open() as client:
            self._widths.clear()
            client.delete_collection(self._mark)  # first: a crash from here on cannot lose that a feed is due
            for found in client.get_collections().collections:
                if found.name.startswith(self._prefix):
                    client.delete_collection(found.name)

    def close(self) -> None:
        """Let the connection go. The index connects again at its next use."""
        with self._lock:
            client, self._client = self._client, None
            self._widths.clear()
            if client is not None:
                client.close()

    @property
    def _prefix(self) -> str:
        return f"elm.{self.url.bank}."

    @property
    def _mark(self) -> str:
        return f"{self._prefix}fed"

    def _name(self, namespace: str, kind: KeyKind) -> str:
        return f"{self._prefix}{hashlib.sha256(namespace.encode('utf-8')).hexdigest()[:40]}-{kind.value}"

    def _stored(self, width: int) -> int:
        assert self.width_limit is not None
        return projection.WIDTH if width > self.width_limit else width

    def _narrow(self, vector: Vector) -> Vector:
        stored = self._stored(len(vector))
        return vector if stored == len(vector) else projection.project(vector, width=stored)

    def _width(self, client: Any, collection: str) -> int | None:
        """Of the keys, as they were before any projection."""
        if collection not in self._widths:
            if not client.collection_exists(collection):
                return None
            self._widths[collection] = int(client.get_collection(collection).config.metadata["width"])
        return self._widths[collection]

    def _create(self, client: Any, collection: str, width: int, stored: int) -> None:
        if collection in self._widths or client.collection_exists(collection):
            return
        from qdrant_client import models

        metadata = {"width": width} | ({"seed": projection.SEED} if stored != width else {})
        client.create_collection(
            collection,
            vectors_config=models.VectorParams(size=stored, distance=models.Distance.COSINE, on_disk=True),
            hnsw_config=models.HnswConfigDiff(m=32, ef_construct=200),
            metadata=metadata,
        )
        self._widths[collection] = width

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """Hold the lock and a client; after any failure everything that was known of the server is asked again."""
        with self._lock:
            try:
                if self._client is None:
                    self._client = self._connected()
                yield self._client
            except ElmError:
                raise
            except Exception as error:
                self._widths.clear()
                anew = "not found" in str(error).lower()  # a collection; the server and the embedded mode differ
                raise (IndexMadeAnew if anew else IndexUnavailable)(
                    f"the Qdrant server {self.folder or self.url.address} failed ({type(error).__name__}: "
                    f"{str(error)[:200]}); tried for {self._seconds:g} s: check that it runs, "
                    "`elm-agent index status` tries again"
                ) from error

    def _connected(self) -> Any:
        try:
            from qdrant_client import QdrantClient
        except ModuleNotFoundError:
            raise IndexUnavailable("Qdrant needs its client: run `pip install 'elm-agent[qdrant]'`") from None
        if self.folder is not None:
            return QdrantClient(path=str(self.folder))
        return QdrantClient(
            url=self.url.address, api_key=os.environ.get(KEY), timeout=int(self._seconds), check_compatibility=False
        )


def _point(memory_id: str) -> str:
    return str(uuid.uuid5(_SPACE, memory_id))
