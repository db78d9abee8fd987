"""Tensors as files under their content hash. Knows bytes, names and disks; nothing of prompts, SQL or memories.

``<directory>/<namespace>/ab/<64 hex digits>.safetensors``, written once: temporary name in the same folder, fsync,
rename, fsync of the folder. A crash leaves at worst a ``.part`` file (see ``sweep``) or a file that no record names.
One folder belongs to one database; several processes may use it.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from filelock import FileLock, Timeout

from elm_agent.errors import StorageError, StoreBusy
from elm_agent.protocols import Observer, TensorCapability
from elm_agent.storage.tensors.names import (
    checked_bytes,
    digest_at,
    digest_of_bytes,
    file_of,
    folder_of,
    missing,
    namespace_of,
)

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}


class LocalTensors:
    """A ``TensorStore`` in a local folder. The folder is made on the first ``put``."""

    capabilities = frozenset({TensorCapability.BASE, TensorCapability.DURABLE, TensorCapability.SHARED})

    def __init__(self, directory: Path, *, busy_seconds: float = 30.0) -> None:
        """``busy_seconds``: how long to wait for another process that holds the folder's lock."""
        self.directory = Path(directory)
        self.busy_seconds = busy_seconds

    def put(self, namespace: str, data: bytes, observe: Observer | None = None) -> str:
        """Store bytes durably and return ``sha256:<hex>``; storing again renews the file, and so mends it.

        Raises:
            StorageError: the disk is full, or the folder cannot be written. Nothing is left behind.
            StoreBusy: another process holds the folder's lock for too long.
        """
        digest = digest_of_bytes(data)
        path = self.path(namespace, digest)
        detail = {"digest": digest, "bytes": len(data)}
        temporary = path.with_name(f"{path.stem}.{secrets.token_hex(6)}.part")
        with self._explained(f"a tensor of {len(data)} bytes could not be stored"):
            self._make_folder(path.parent)
            try:
                write_synced(temporary, data)
                if observe:
                    observe("tensor.temporary", detail)
                with self._lock():
                    os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(path.parent)
        if observe:
            observe("tensor.durable", detail)
        return digest

    def get(self, namespace: str, digest: str, *, cached: bool = True) -> bytes:  # noqa: ARG002  nothing is cached
        """The bytes under ``digest``, hashed again.

        Raises:
            TensorMissing: no such file.
            TensorCorrupt: the digest is malformed, or the bytes are not what it says.
        """
        path = self.path(namespace, digest)
        try:
            with self._explained(f"tensor {digest[:19]}… could not be read"):
                data = path.read_bytes()
        except FileNotFoundError:
            raise missing(digest, str(path)) from None
        return checked_bytes(data, digest, str(path))

    def delete(
        self,
        namespace: str,
        digest: str,
        *,
        older_than_seconds: float | None = None,
        unless: Callable[[], bool] | None = None,
    ) -> bool:
        """Remove; False when it was not there, was stored (again) less than ``older_than_seconds`` ago, or is to stay
        by what ``unless`` says, asked under the folder's lock, without which no ``put`` ends."""
        path = self.path(namespace, digest)
        if not path.exists():
            return False
        with self._explained(f"tensor {digest[:19]}… could not be deleted"), self._lock():
            try:
                if older_than_seconds is not None and age_of(path) < older_than_seconds:
                    return False
                if unless is not None and unless():
                    return False
                path.unlink()
            except FileNotFoundError:
                return False
            sync_folder(path.parent)  # a purge says that it is gone: it must not be back after a power cut
        return True

    def keeps_deleted(self) -> str | None:
        """None: what the disk itself keeps, and its backups, are its owner's matter."""
        return None

    def age(self, namespace: str, digest: str) -> float:
        """Seconds since the bytes were last stored. Raises ``TensorMissing``."""
        path = self.path(namespace, digest)
        try:
            return age_of(path)
        except FileNotFoundError:
            raise missing(digest, str(path)) from None

    def digests(self, namespace: str) -> Iterator[str]:
        """Every stored digest of the namespace, in no order."""
        for path in (self.directory / folder_of(namespace)).glob("??/*.safetensors"):
            if (digest := digest_at(path.parent.name, path.name)) is not None:
                yield digest

    def namespaces(self) -> list[str]:
        """Namespaces that have a folder here, sorted."""
        folders = [path.name for path in self.directory.glob("*") if path.is_dir()]
        names = sorted(name for folder in folders if (name := namespace_of(folder)) is not None)
        return [name for name in names if next(self.digests(name), None) is not None]

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

    def path(self, namespace: str, digest: str) -> Path:
        """Where the tensor lies. Raises ``TensorCorrupt`` or ``SettingsError`` for what is no digest or namespace."""
        return self.directory / folder_of(namespace) / file_of(digest)

    def _left(self, older_than_seconds: float) -> Iterator[Path]:
        flat = self.directory.glob("??/*.part")  # of banks that are older than namespaces' folders
        for path in sorted(chain(self.directory.glob("*/??/*.part"), flat)):
            try:
                old = age_of(path) >= older_than_seconds
            except FileNotFoundError:  # its writer has just renamed it
                continue
            if old:
                yield path

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except FileNotFoundError as error:  # some file systems take no folders; that is no missing tensor
                raise StorageError(f"folder {folder} cannot be made: {disk_advice(error, self.directory)}") from error
            sync_folder(folder.parent)
            sync_folder(self.directory)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Keeps ``delete`` from removing what a ``put`` renews between its look at the age and the removal."""
        with locked(self.directory / ".lock", self.busy_seconds):
            yield

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn an ``OSError`` of the disk into one sentence; let ``FileNotFoundError`` of a read through."""
        try:
            yield
        except (StorageError, FileNotFoundError):
            raise
        except OSError as error:
            raise StorageError(f"{what}: {disk_advice(error, self.directory)}") from error


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock file at ``path``. Raises ``StoreBusy`` after ``seconds`` of waiting."""
    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise StoreBusy(
            f"another process has held {path} for {seconds:g} s; wait for it or end it, and run this again"
        ) from error
    try:
        yield
    finally:
        lock.release()


def disk_advice(error: OSError, directory: Path) -> str:
    """What is wrong with the disk of ``directory``, and what to do."""
    if error.errno in _FULL:
        return f"the disk of {directory} is full; free some space and run the same command again"
    if error.errno in _REFUSED:
        return f"{directory} is not accessible ({error.strerror}); check its owner, mode and mount"
    return f"{directory}: {error.strerror or error}"


def write_synced(path: Path, data: bytes) -> None:
    """A new file whose bytes are on the disk when this returns; its name is only after ``sync_folder``."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def age_of(path: Path) -> float:
    """Seconds since the file was written."""
    return time.time() - path.stat().st_mtime
