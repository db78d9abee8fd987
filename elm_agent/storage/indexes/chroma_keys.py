"""Keys in Chroma collections, one for each namespace and kind; embedded and server differ only in who is asked."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from elm_agent.errors import ElmError, IndexUnavailable
from elm_agent.protocols import IndexEntry
from elm_agent.records import Hit, KeyKind, Vector
from elm_agent.storage.indexes.chroma_probe import collection_options
from elm_agent.storage.indexes.key_table import check_vector

_CHUNK = 1000  # Chroma refuses more than 5,461 rows at once; searches get in between the chunks
_SLACK = 32  # hits fetched beyond k, so that ties at the border are decided by id
_MOST = 10_000  # hits that are ever asked for; no caller has use for more


class ChromaKeys:
    """What both have in common. A subclass says how to ``_open`` the client, and what a collection is called."""

    def __init__(self) -> None:
        self._client: Any = None
        self._collections: dict[str, Any] = {}
        self._lock = threading.RLock()

    def _open(self) -> AbstractContextManager[None]:
        """Hold the lock and an open client; explain whatever Chroma raises."""
        raise NotImplementedError

    def _name(self, namespace: str, kind: KeyKind) -> str:
        return f"{hashlib.sha256(namespace.encode('utf-8')).hexdigest()[:40]}-{kind.value}"

    def apply(self, namespace: str, kind: KeyKind, upsert: Iterable[IndexEntry], delete: Iterable[str]) -> None:
        """See ``KeyIndex``. Upserts apply before deletions; an error in between leaves whole entries only.

        Raises:
            InputError: a vector of another dtype or width; then nothing changed.
            IndexUnavailable: Chroma cannot be asked or failed.
        """
        vectors = {entry.memory_id: entry.vector for entry in upsert}
        ids, gone = list(vectors), list(delete)
        width = check_vector(vectors[ids[0]]).shape[0] if ids else None
        with self._open():
            collection = self._collection(namespace, kind, create_width=width)
            if collection is None:
                return
            for vector in vectors.values():
                check_vector(vector, collection.metadata["width"])
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK]
            with self._open():
                collection.upsert(ids=chunk, embeddings=[vectors[memory_id] for memory_id in chunk])
        for start in range(0, len(gone), _CHUNK):
            with self._open():
                collection.delete(ids=gone[start : start + _CHUNK])

    def search(self, namespace: str, kind: KeyKind, query: Vector, k: int) -> list[Hit]:
        """See ``KeyIndex``. Raises ``InputError`` when the query does not fit the keys."""
        with self._open():
            collection = self._collection(namespace, kind)
            if collection is None or k < 1:
                return []
            check_vector(query, collection.metadata["width"])
            wanted = min(2 * k + _SLACK, _MOST)
            found = collection.query(query_embeddings=[query], n_results=wanted, include=["distances"])
        pairs = zip(found["ids"][0], found["distances"][0], strict=True)
        hits = [Hit(memory_id, min(1.0, max(-1.0, 1.0 - float(distance)))) for memory_id, distance in pairs]
        hits.sort(key=lambda hit: (-hit.similarity, hit.memory_id))
        return hits[:k]

    def ids(self, namespace: str, kind: KeyKind) -> set[str]:
        with self._open():
            collection = self._collection(namespace, kind)
            return set(collection.get(include=[])["ids"]) if collection is not None else set()

    def _collection(self, namespace: str, kind: KeyKind, create_width: int | None = None) -> Any:
        """The collection, or None when there is none and no width to create it with."""
        name = self._name(namespace, kind)
        if name not in self._collections:
            if create_width is not None:
                make: Callable[..., Any] = self._client.get_or_create_collection
                self._collections[name] = make(name, metadata={"width": create_width}, **collection_options())
            elif self._exists(name):
                self._collections[name] = self._client.get_collection(name, embedding_function=None)
        return self._collections.get(name)

    def _exists(self, name: str) -> bool:
        return name in {found.name for found in self._client.list_collections()}


@contextmanager
def explained(unavailable: Callable[[BaseException], IndexUnavailable]) -> Iterator[None]:
    """Whatever Chroma raises becomes what ``unavailable`` makes of it."""
    try:
        yield
    except ElmError:
        raise
    except Exception as error:
        raise unavailable(error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the Rust core; not an Exception, and has no public name
            raise
        raise unavailable(error) from error
