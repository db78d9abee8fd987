"""Copies of remote tensors in a folder of this machine. Knows files and ages; nothing of where tensors come from.

Laid out like ``LocalTensors``. A copy is hashed at every read, and a bad one is dropped; the least recently used go
when there are too many bytes, and every copy goes when it is too old: what another machine has purged stays here for
no longer than that and an hour of use. Losing the folder costs only time: nothing in it is synced or the only copy.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from elm_agent.errors import StorageError, TensorCorrupt
from elm_agent.storage.tensors.local import disk_advice
from elm_agent.storage.tensors.names import checked_bytes, digest_at, file_of, folder_of, namespace_of

_LOG = logging.getLogger(__name__)
_SLACK = 0.1  # share of ``max_bytes`` that a process adds before it looks at the folder again
_SWEEP_SECONDS = 3600.0  # a process that uses the cache sweeps it so often


class TensorCache:
    """A bounded folder of verified copies. Several processes may share it; each may exceed the bound by a tenth."""

    def __init__(self, directory: Path, *, max_bytes: int, max_age_seconds: float) -> None:
        self.directory = Path(directory)
        self.max_bytes = max_bytes
        self.max_age_seconds = max_age_seconds
        self._unseen = 0.0  # bytes this process may add before it sweeps
        self._swept = -_SWEEP_SECONDS  # when it last did, by the monotonic clock
        self._lock = threading.Lock()

    def get(self, namespace: str, digest: str) -> bytes | None:
        """The copy, hashed again; None when there is none, or none that is whole and young enough."""
        path = self._path(namespace, digest)
        self._keep_bounds(0)
        try:
            fetched = path.stat().st_mtime
            if not 0 <= time.time() - fetched < self.max_age_seconds:
                path.unlink(missing_ok=True)
                return None
            data = checked_bytes(path.read_bytes(), digest, str(path))
            os.utime(path, (time.time(), fetched))  # the access time says when it was last used
        except FileNotFoundError:
            return None
        except TensorCorrupt:
            path.unlink(missing_ok=True)
            return None
        except OSError as error:
            _LOG.warning("a cached tensor could not be read: %s", disk_advice(error, self.directory))
            return None
        return data

    def add(self, namespace: str, digest: str, data: bytes) -> None:
        """Keep a copy. A disk that takes none is logged: the caller has the bytes already."""
        if len(data) > self.max_bytes:
            return
        path = self._path(namespace, digest)
        temporary = path.with_name(f"{path.stem}.{secrets.token_hex(6)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            _LOG.warning("a tensor could not be cached: %s", disk_advice(error, self.directory))
            return
        self._keep_bounds(len(data))

    def forget(self, namespace: str, digest: str) -> bool:
        """Remove the copy; whether there was one. Raises ``StorageError`` when it cannot be removed."""
        path = self._path(namespace, digest)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            advice = disk_advice(error, self.directory)
            raise StorageError(f"the cached copy of tensor {digest[:19]}… could not be deleted: {advice}") from error
        return True

    def copies(self) -> Iterator[tuple[str, str]]:
        """(namespace, digest) of every copy, for ``doctor``."""
        for path, _ in self._files():
            namespace, digest = namespace_of(path.parent.parent.name), digest_at(path.parent.name, path.name)
            if namespace is not None and digest is not None:
                yield namespace, digest

    def sweep(self) -> int:
        """Remove what is too old, then the least recently used beyond the bound; how many files went.

        Raises ``StorageError`` when a file cannot be removed.
        """
        now, kept, total, gone = time.time(), [], 0, 0
        for path, stat in self._files():
            left = path.suffix == ".part"  # of a process that was killed, or that is writing it
            if not 0 <= now - stat.st_mtime < (_SWEEP_SECONDS if left else self.max_age_seconds):
                gone += self._remove(path)
            elif not left:
                kept.append((stat.st_atime, stat.st_size, path))
                total += stat.st_size
        for _, size, path in sorted(kept):
            if total <= self.max_bytes * (1 - _SLACK):
                break
            gone += self._remove(path)
            total -= size
        with self._lock:
            self._swept = time.monotonic()
            self._unseen = max(0.0, min(self.max_bytes - total, self.max_bytes * _SLACK))
        return gone

    def _keep_bounds(self, added: int) -> None:
        with self._lock:
            self._unseen -= added
            due = time.monotonic() - self._swept >= min(_SWEEP_SECONDS, self.max_age_seconds)
        if due or self._unseen < 0:
            try:
                self.sweep()
            except StorageError as error:  # the caller has, or gets, its bytes all the same
                _LOG.warning("the cache of tensors could not be swept: %s", error)

    def _remove(self, path: Path) -> int:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"cached tensor {path.name} could not be deleted: {disk_advice(error, self.directory)}"
            ) from error
        return 1

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.directory.glob("*/??/*"):
            try:
                yield path, path.stat()
            except FileNotFoundError:  # another process has just removed it
                continue

    def _path(self, namespace: str, digest: str) -> Path:
        return self.directory / folder_of(namespace) / file_of(digest)
