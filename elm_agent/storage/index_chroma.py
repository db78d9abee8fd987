"""Nearest keys in an embedded Chroma folder. Knows nothing of SQL: it is fed from outside and may lose everything.

Chroma embedded bears one process only, and a damaged folder can end the process that opens it. So one owner
holds a file lock beside the folder, everybody else gets ``IndexUnavailable`` and scans exactly; a child process
opens the folder first, and a broken one is moved aside and begun anew (``rebuilt``).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from elm_agent.errors import ElmError, IndexUnavailable
from elm_agent.protocols import IndexCapability, IndexEntry
from elm_agent.records import Hit, KeyKind, Vector
from elm_agent.storage.chroma_probe import BROKEN, collection_options, open_client
from elm_agent.storage.key_table import check_vector

_CHUNK = 1000  # Chroma refuses more than 5,461 rows at once; searches get in between the chunks
_SLACK = 32  # hits fetched beyond k, so that ties at the border are decided by id
_MARK = "must_be_fed"
_CRASHES = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGILL, -signal.SIGFPE}


class ChromaIndex:
    """A ``KeyIndex`` in ``directory``, opened at first use. Approximate: the caller re-checks what it gets.

    ``probe_seconds``: how long the child process may take; it rebuilds the graph of every collection.
    """

    name = "chroma"
    capabilities = frozenset(
        {IndexCapability.BASE, IndexCapability.DURABLE, IndexCapability.WIDE, IndexCapability.ERASES}
    )
    width_limit: int | None = None

    def __init__(self, directory: Path, *, probe_seconds: float = 600.0) -> None:
        self.directory = Path(directory).absolute()
        self._probe_seconds = probe_seconds
        self._owner = FileLock(self.directory.with_name(self.directory.name + ".lock"), thread_local=False)
        self._client: Any = None
        self._collections: dict[str, Any] = {}
        self._lock = threading.RLock()

    @property
    def rebuilt(self) -> bool:
        """Whether the folder began anew and was not yet acknowledged: everything must be fed again.

        Survives a crash. Opens the index, so it raises ``IndexUnavailable`` in a process that is not the owner.
        """
        with self._open():
            return (self.directory / _MARK).exists()

    def acknowledge_rebuild(self) -> None:
        """The feeder has forgotten how far it had come; from now on the folder counts as its own."""
        with self._open():
            (self.directory / _MARK).unlink(missing_ok=True)

    def apply(self, namespace: str, kind: KeyKind, upsert: Iterable[IndexEntry], delete: Iterable[str]) -> None:
        """See ``KeyIndex``. Upserts apply before deletions; an error in between leaves whole entries only.

        Raises:
            InputError: a vector of another dtype or width; then nothing changed.
            IndexUnavailable: not the owner, or Chroma failed.
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
            found = collection.query(query_embeddings=[query], n_results=2 * k + _SLACK, include=["distances"])
        pairs = zip(found["ids"][0], found["distances"][0], strict=True)
        hits = [Hit(memory_id, min(1.0, max(-1.0, 1.0 - float(distance)))) for memory_id, distance in pairs]
        hits.sort(key=lambda hit: (-hit.similarity, hit.memory_id))
        return hits[:k]

    def ids(self, namespace: str, kind: KeyKind) -> set[str]:
        with self._open():
            collection = self._collection(namespace, kind)
            return set(collection.get(include=[])["ids"]) if collection is not None else set()

    def scrub(self, namespace: str) -> bool:  # noqa: ARG002  the log, which keeps every deleted vector, is one for all
        """Begin anew: the only way that leaves nothing. Every namespace has to be fed again (``rebuilt``)."""
        self.wipe()
        return True

    def wipe(self) -> None:
        """Begin anew with an empty folder; works on a broken one too."""
        with self._lock:
            self._own()
            self._disconnect()
            with _explained(self.directory):
                if self.directory.exists():
                    shutil.rmtree(self.directory)
                self._begin()
                self._client = open_client(self.directory)

    def close(self) -> None:
        """Give the folder back. The index opens again at its next use."""
        with self._lock:
            self._disconnect()
            self._owner.release()

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Hold the lock and an open client; explain whatever Chroma raises."""
        with self._lock:
            if self._client is None:
                self._own()
                with _explained(self.directory):
                    self._prepare()
                    self._client = open_client(self.directory)
            with _explained(self.directory):
                yield

    def _own(self) -> None:
        if self._owner.is_locked:
            return
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            self._owner.acquire(blocking=False)
        except Timeout:
            raise IndexUnavailable(
                f"the Chroma index {self.directory} is held by another process; Chroma bears only one, so this "
                "process scans the keys exactly"
            ) from None
        except OSError as error:
            raise IndexUnavailable(f"the Chroma index {self.directory} cannot be locked: {error.strerror}") from error

    def _prepare(self) -> None:
        """After this the folder is one that a child process has opened, or a new one."""
        if not (self.directory / "chroma.sqlite3").exists():
            self._begin()
            return
        if not os.access(self.directory, os.W_OK):
            raise IndexUnavailable(f"the Chroma index {self.directory} is not writable; check its owner and mount")
        if _broken(self.directory, self._probe_seconds):
            aside = self.directory.with_name(self.directory.name + ".broken")  # the last one is kept for inspection
            if aside.exists():
                shutil.rmtree(aside)
            self.directory.rename(aside)
            self._begin()

    def _begin(self) -> None:
        """The mark is on disk before anything else: a crash from here on cannot lose that a feed is due."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / _MARK, "wb") as mark:
            os.fsync(mark.fileno())

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        self._collections.clear()
        if client is not None:
            client.close()

    def _collection(self, namespace: str, kind: KeyKind, create_width: int | None = None) -> Any:
        """The collection, or None when there is none and no width to create it with."""
        name = f"{hashlib.sha256(namespace.encode('utf-8')).hexdigest()[:40]}-{kind.value}"
        if name not in self._collections:
            if create_width is not None:
                make: Callable[..., Any] = self._client.get_or_create_collection
                self._collections[name] = make(name, metadata={"width": create_width}, **collection_options())
            elif name in {found.name for found in self._client.list_collections()}:
                self._collections[name] = self._client.get_collection(name, embedding_function=None)
        return self._collections.get(name)


def _broken(directory: Path, seconds: float) -> bool:
    """Let a child process open the folder. Raises ``IndexUnavailable`` when that says nothing about the folder."""
    command = [sys.executable, "-m", "elm_agent.storage.chroma_probe", str(directory)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        child = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise IndexUnavailable(f"the Chroma index {directory} took more than {seconds:.0f} s to open") from None
    if child.returncode == 0:
        return False
    if child.returncode == BROKEN or child.returncode in _CRASHES:
        return True
    last = (child.stderr.strip().splitlines() or ["no message"])[-1]
    raise IndexUnavailable(f"the Chroma index {directory} could not be tried (status {child.returncode}): {last}")


@contextmanager
def _explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except ElmError:
        raise
    except Exception as error:
        raise _unavailable(directory, error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the Rust core; not an Exception, and has no public name
            raise
        raise _unavailable(directory, error) from error


def _unavailable(directory: Path, error: BaseException) -> IndexUnavailable:
    return IndexUnavailable(
        f"the Chroma index {directory} failed ({type(error).__name__}: {str(error)[:200]}); keys are scanned "
        "exactly, and `elm-agent doctor --repair` rebuilds it"
    )
