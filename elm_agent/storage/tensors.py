"""Tensors as files under their content hash. Knows bytes, names and disks; nothing of prompts, SQL or memories.

``<directory>/ab/<64 hex digits>.safetensors``, written once: temporary name in the same folder, fsync, rename,
fsync of the folder. A crash leaves at worst a ``.part`` file (see ``sweep``) or a file that no record names.
One folder belongs to one database; several processes may use it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from elm_agent.errors import StorageError, TensorCorrupt, TensorMissing
from elm_agent.protocols import Observer

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_FILE = re.compile(r"([0-9a-f]{64})\.safetensors")
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}


class LocalTensors:
    """A ``TensorStore`` in a local folder. The folder is made on the first ``put``."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    def put(self, data: bytes, observe: Observer | None = None) -> str:
        """Store bytes durably and return ``sha256:<hex>``; storing again renews the file, and so mends it.

        Raises:
            StorageError: the disk is full, or the folder cannot be written. Nothing is left behind.
        """
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        detail = {"digest": digest, "bytes": len(data)}
        temporary = path.with_name(f"{path.stem}.{secrets.token_hex(6)}.part")
        with self._explained(f"a tensor of {len(data)} bytes could not be stored"):
            self._make_folder(path.parent)
            try:
                _write_synced(temporary, data)
                if observe:
                    observe("tensor.temporary", detail)
                with self._lock():
                    os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(path.parent)
        if observe:
            observe("tensor.durable", detail)
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes under ``digest``, hashed again.

        Raises:
            TensorMissing: no such file.
            TensorCorrupt: the digest is malformed, or the bytes are not what it says.
        """
        path = self._path(digest)
        try:
            with self._explained(f"tensor {digest[:19]}… could not be read"):
                data = path.read_bytes()
        except FileNotFoundError:
            raise _missing(digest, path) from None
        found = "sha256:" + hashlib.sha256(data).hexdigest()
        if found != digest:
            raise TensorCorrupt(
                f"tensor {path} was altered: expected {digest[:19]}…, got {found[:19]}… ({len(data)} bytes); "
                "run `elm-agent doctor --repair`"
            )
        return data

    def delete(self, digest: str, *, older_than_seconds: float | None = None) -> bool:
        """Remove; False when it was not there, or was stored (again) less than ``older_than_seconds`` ago."""
        path = self._path(digest)
        if not path.exists():
            return False
        with self._explained(f"tensor {digest[:19]}… could not be deleted"), self._lock():
            try:
                if older_than_seconds is not None and _age(path) < older_than_seconds:
                    return False
                path.unlink()
            except FileNotFoundError:
                return False
        return True

    def age(self, digest: str) -> float:
        """Seconds since the bytes were last stored. Raises ``TensorMissing``."""
        path = self._path(digest)
        try:
            return _age(path)
        except FileNotFoundError:
            raise _missing(digest, path) from None

    def digests(self) -> Iterator[str]:
        for path in self.directory.glob("??/*.safetensors"):
            if (match := _FILE.fullmatch(path.name)) and path.parent.name == path.name[:2]:
                yield f"sha256:{match[1]}"

    def temporary(self, older_than_seconds: float) -> list[str]:
        """Names of temporary files that a crashed ``put`` left at least ``older_than_seconds`` ago."""
        return [str(path.relative_to(self.directory)) for path in self._left(older_than_seconds)]

    def sweep(self, older_than_seconds: float) -> list[str]:
        """Delete the files that ``temporary`` names, and return their names."""
        swept = []
        for path in self._left(older_than_seconds):
            with self._explained(f"temporary file {path.name} could not be deleted"):
                path.unlink(missing_ok=True)
            swept.append(str(path.relative_to(self.directory)))
        return swept

    def _left(self, older_than_seconds: float) -> Iterator[Path]:
        for path in sorted(self.directory.glob("??/*.part")):
            try:
                old = _age(path) >= older_than_seconds
            except FileNotFoundError:  # its writer has just renamed it
                continue
            if old:
                yield path

    def _path(self, digest: str) -> Path:
        match = _DIGEST.fullmatch(digest)
        if match is None:  # checked before it becomes a path: a record must not reach outside the folder
            raise TensorCorrupt(f"a tensor digest is 'sha256:' and 64 hex digits; got {digest[:80]!r}")
        return self.directory / match[1][:2] / f"{match[1]}.safetensors"

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _sync_folder(self.directory)

    def _lock(self) -> FileLock:
        """Keeps ``delete`` from removing what a ``put`` renews between its look at the age and the removal."""
        return FileLock(self.directory / ".lock")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn an ``OSError`` of the disk into one sentence; let ``FileNotFoundError`` of a read through."""
        try:
            yield
        except (StorageError, FileNotFoundError):
            raise
        except OSError as error:
            if error.errno in _FULL:
                advice = f"the disk of {self.directory} is full; free some space and run the same command again"
            elif error.errno in _REFUSED:
                advice = f"{self.directory} is not accessible ({error.strerror}); check its owner, mode and mount"
            else:
                advice = f"{self.directory}: {error.strerror or error}"
            raise StorageError(f"{what}: {advice}") from error


def _missing(digest: str, path: Path) -> TensorMissing:
    return TensorMissing(f"tensor {digest[:19]}… is not at {path}; run `elm-agent doctor --repair`")


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime
