"""Tensor store and key index in plain dictionaries: the obvious twins that the real back ends are judged beside."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from elm_agent.errors import InputError, TensorCorrupt, TensorMissing
from elm_agent.protocols import IndexCapability, IndexEntry, Observer, TensorCapability
from elm_agent.records import Hit, KeyKind, Vector
from elm_agent.settings import check_namespace


class MemoryTensors:
    """A ``TensorStore`` that forgets everything with the process. ``data`` is public, so that tests can alter it."""

    capabilities = frozenset({TensorCapability.BASE})

    def __init__(self) -> None:
        self.data: dict[tuple[str, str], bytes] = {}
        self._stored: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def put(self, namespace: str, data: bytes, observe: Observer | None = None) -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        name = _checked(namespace, digest)
        detail = {"digest": digest, "bytes": len(data)}
        if observe:
            observe("tensor.temporary", detail)
        with self._lock:
            self.data[name] = bytes(data)
            self._stored[name] = time.monotonic()
        if observe:
            observe("tensor.durable", detail)
        return digest

    def get(self, namespace: str, digest: str, *, cached: bool = True) -> bytes:  # noqa: ARG002  nothing is cached
        name = _checked(namespace, digest)
        with self._lock:
            data = self.data.get(name)
        if data is None:
            raise TensorMissing(f"tensor {digest[:19]}… is not here; run `elm-agent doctor --repair`")
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise TensorCorrupt(f"tensor {digest[:19]}… was altered; run `elm-agent doctor --repair`")
        return data

    def delete(
        self,
        namespace: str,
        digest: str,
        *,
        older_than_seconds: float | None = None,
        unless: Callable[[], bool] | None = None,
    ) -> bool:
        name = _checked(namespace, digest)
        with self._lock:
            if name not in self.data:
                return False
            if older_than_seconds is not None and time.monotonic() - self._stored[name] < older_than_seconds:
                return False
            if unless is not None and unless():
                return False
            del self.data[name], self._stored[name]
            return True

    def keeps_deleted(self) -> str | None:
        return None

    def age(self, namespace: str, digest: str) -> float:
        name = _checked(namespace, digest)
        with self._lock:
            if name not in self._stored:
                raise TensorMissing(f"tensor {digest[:19]}… is not here; run `elm-agent doctor --repair`")
            return time.monotonic() - self._stored[name]

    def digests(self, namespace: str) -> Iterator[str]:
        check_namespace(namespace)
        with self._lock:
            known = [digest for owner, digest in self.data if owner == namespace]
        yield from known

    def namespaces(self) -> list[str]:
        with self._lock:
            return sorted({owner for owner, _ in self.data})

    def temporary(self, older_than_seconds: float) -> list[str]:  # noqa: ARG002  nothing can be left behind
        return []

    def sweep(self, older_than_seconds: float) -> list[str]:  # noqa: ARG002
        return []


def _checked(namespace: str, digest: str) -> tuple[str, str]:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise TensorCorrupt(f"a tensor digest is 'sha256:' and 64 hex digits; got {digest[:80]!r}")
    return check_namespace(namespace), digest


class MemoryIndex:
    """A ``KeyIndex`` written the slow, obvious way: one product per key, then a sort."""

    name = "memory"
    capabilities = frozenset(
        {IndexCapability.BASE, IndexCapability.EXACT, IndexCapability.WIDE, IndexCapability.ERASES}
    )

    def __init__(self) -> None:
        self._keys: dict[tuple[str, KeyKind], dict[str, Vector]] = {}
        self._lock = threading.Lock()

    def apply(self, namespace: str, kind: KeyKind, upsert: Iterable[IndexEntry], delete: Iterable[str]) -> None:
        entries, gone = list(upsert), list(delete)
        with self._lock:
            keys = self._keys.get((namespace, kind), {})
            known = next(iter(keys.values())) if keys else None
            for entry in entries:
                known = _check(entry.vector, known)
            keys = keys | {entry.memory_id: entry.vector.copy() for entry in entries}
            self._keys[namespace, kind] = {name: key for name, key in keys.items() if name not in set(gone)}

    def search(self, namespace: str, kind: KeyKind, query: Vector, k: int) -> list[Hit]:
        with self._lock:
            keys = dict(self._keys.get((namespace, kind), {}))
        hits = [
            Hit(memory_id, float(key.astype(np.float64) @ _check(query, key).astype(np.float64)))
            for memory_id, key in keys.items()
        ]
        return sorted(hits, key=lambda hit: (-hit.similarity, hit.memory_id))[: max(k, 0)]

    def ids(self, namespace: str, kind: KeyKind) -> set[str]:
        with self._lock:
            return set(self._keys.get((namespace, kind), {}))

    def scrub(self, namespace: str) -> bool:  # noqa: ARG002  what is deleted is nowhere
        return False

    def wipe(self) -> None:
        with self._lock:
            self._keys.clear()

    def close(self) -> None:
        self.wipe()


def _check(vector: Vector, like: Vector | None) -> Vector:
    if vector.dtype != np.float32 or vector.ndim != 1 or not abs(float(np.linalg.norm(vector)) - 1.0) < 1e-3:
        raise InputError(f"a key is a float32 vector of unit length; got {vector.dtype} of shape {vector.shape}")
    if like is not None and vector.shape != like.shape:
        raise InputError(f"keys here have width {like.shape[0]}; got {vector.shape[0]}")
    return vector
