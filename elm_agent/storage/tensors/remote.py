"""Tensors in an object store, or any file system that fsspec knows, so that many machines share them.

``<url>/<namespace>/ab/<64 hex digits>.safetensors``. An object store takes an object whole or not at all; elsewhere
a temporary file is moved into place. Knows nothing of prompts, SQL or memories. Credentials come from where the file
system's own library looks for them (for S3 the AWS environment variables, profile or role), never from settings.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from elm_agent.errors import ElmError, StorageError, StoreBusy
from elm_agent.protocols import Observer, TensorCapability
from elm_agent.storage.tensors.cache import TensorCache
from elm_agent.storage.tensors.names import (
    checked_bytes,
    digest_at,
    digest_of_bytes,
    file_of,
    folder_of,
    missing,
    namespace_of,
)
from elm_agent.storage.tensors.urls import advice_on, open_file_system, redacted
from elm_agent.storage.tensors.versions import versions_kept

_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "memory"})  # writes are atomic
_PREFIX_LISTS = frozenset({"s3", "s3a", "gs", "gcs"})  # they can list by the beginning of a name
_DOOMED_SECONDS = 120.0  # a deletion is over by then; its mark is ignored
_DELETE_WITHIN = 30.0  # a deletion that was held up for longer than this gives up
_LEFT = (".part", ".doomed")


class FsspecTensors:
    """A ``TensorStore`` at an fsspec URL such as ``s3://bucket/prefix``. The bucket must be there."""

    def __init__(
        self, url: str, *, options: Mapping[str, Any] | None = None, cache: TensorCache | None = None
    ) -> None:
        """``options``: of the file system, such as ``endpoint_url``; no secrets. ``cache``: copies on this machine.

        Raises:
            SettingsError: an unknown kind of URL, a missing package, or a secret among the options.
        """
        self.url = redacted(url).rstrip("/")
        self.cache = cache
        self._scheme = url.partition("://")[0]
        self._fs, self._root = open_file_system(url, options or {})
        endpoint = (options or {}).get("endpoint_url")
        self._place = f"{self.url} at {endpoint}" if endpoint else self.url

    @property
    def capabilities(self) -> frozenset[TensorCapability]:
        if self._scheme == "memory":
            return frozenset({TensorCapability.BASE})
        local = {TensorCapability.BASE, TensorCapability.DURABLE, TensorCapability.SHARED}
        return frozenset(local if self._scheme in ("file", "local") else local | {TensorCapability.REMOTE})

    def put(self, namespace: str, data: bytes, observe: Observer | None = None) -> str:
        """Store bytes durably and return ``sha256:<hex>``; storing again renews the object, and so mends it.

        Raises:
            StorageError: the store cannot be reached, refuses, or is full. Nothing is left behind.
        """
        digest = digest_of_bytes(data)
        path = self._path(namespace, digest)
        detail = {"digest": digest, "bytes": len(data)}
        with self._explained(f"a tensor of {len(data)} bytes could not be stored"):
            self._write(path, data, lambda: observe("tensor.temporary", detail) if observe else None)
            while not self._stays(path):  # see ``delete``
                self._write(path, data, lambda: None)
        if observe:
            observe("tensor.durable", detail)
        return digest

    def get(self, namespace: str, digest: str, *, cached: bool = True) -> bytes:
        """The bytes under ``digest``, hashed again, from this machine's cache or the store.

        Raises:
            TensorMissing: no such object.
            TensorCorrupt: the digest is malformed, or the bytes are not what it says.
            StorageError: the store cannot be reached or refuses.
        """
        path = self._path(namespace, digest)
        if cached and self.cache is not None and (copy := self.cache.get(namespace, digest)) is not None:
            return copy
        try:
            with self._explained(f"tensor {digest[:19]}… could not be read"):
                data = bytes(self._fs.cat_file(path))
        except FileNotFoundError:
            raise missing(digest, self._shown(path)) from None
        checked_bytes(data, digest, self._shown(path))
        if cached and self.cache is not None:
            self.cache.add(namespace, digest, data)
        return data

    def delete(
        self,
        namespace: str,
        digest: str,
        *,
        older_than_seconds: float | None = None,
        unless: Callable[[], bool] | None = None,
    ) -> bool:
        """Remove here and in this machine's cache; False when it was not there, is too young, or is to stay.

        Copies in the caches of other machines go when they are too old for the cache, or by ``forget`` there.

        No server has "delete if", so a careful deletion first leaves a mark, then asks; a ``put`` looks for marks
        after its write, waits until there is none, and writes again what went meanwhile.
        """
        path = self._path(namespace, digest)
        self.forget(namespace, digest)
        with self._explained(f"tensor {digest[:19]}… could not be deleted"):
            try:
                young = self._age(path) < (older_than_seconds or 0.0)  # a store is silent about what was not there
                if older_than_seconds is None and unless is None:
                    self._fs.rm_file(path)
                    return True
                return not young and self._delete_marked(path, older_than_seconds or 0.0, unless)
            except FileNotFoundError as error:
                self._check_bucket(error)
                return False

    def keeps_deleted(self) -> str | None:
        """Whether the bucket of an S3 store has versions, as the server says. Other stores are not asked."""
        if self._scheme not in ("s3", "s3a"):
            return None
        with self._explained("whether deleted tensors are kept could not be asked"):
            return versions_kept(self._fs, self._root, self._place)

    def forget(self, namespace: str, digest: str) -> bool:
        """Remove this machine's cached copy; whether there was one."""
        return self.cache is not None and self.cache.forget(namespace, digest)

    def sweep_cache(self) -> int:
        """Remove what is too old or too much in this machine's cache; how many copies went."""
        return 0 if self.cache is None else self.cache.sweep()

    def age(self, namespace: str, digest: str) -> float:
        """Seconds since the bytes were last stored, by the server's time of writing and this machine's clock.

        Raises ``TensorMissing``.
        """
        path = self._path(namespace, digest)
        try:
            with self._explained(f"tensor {digest[:19]}… could not be examined"):
                return self._age(path)
        except FileNotFoundError:
            raise missing(digest, self._shown(path)) from None

    def digests(self, namespace: str) -> Iterator[str]:
        """Every stored digest of the namespace, in no order."""
        folder = f"{self._root}/{folder_of(namespace)}"
        with self._explained("the tensors could not be listed"):
            found = self._listed(folder, deep=True)
        for path in map(PurePosixPath, found):
            if (digest := digest_at(path.parent.name, path.name)) is not None:
                yield digest

    def namespaces(self) -> list[str]:
        """Namespaces with a digest, sorted."""
        with self._explained("the namespaces of tensors could not be listed"):
            folders = [PurePosixPath(path).name for path in self._listed(self._root)]
            names = sorted(name for folder in folders if (name := namespace_of(folder)) is not None)
            return [name for name in names if self._holds(name)]

    def temporary(self, older_than_seconds: float) -> list[str]:
        """Names of temporary files and marks that a crash left at least ``older_than_seconds`` ago."""
        with self._explained("temporary files could not be listed"):
            return [path.removeprefix(f"{self._root}/") for path in self._leavings(older_than_seconds)]

    def sweep(self, older_than_seconds: float) -> list[str]:
        """Delete what ``temporary`` names, and return the names."""
        swept = []
        with self._explained("temporary files could not be deleted"):
            for path in self._leavings(older_than_seconds):
                with suppress(FileNotFoundError):  # another process has just swept it
                    self._fs.rm_file(path)
                swept.append(path.removeprefix(f"{self._root}/"))
        return swept

    # --- one object ---------------------------------------------------------------------------------------

    def _write(self, path: str, data: bytes, written: Any) -> None:
        if self._scheme in _OBJECT_STORES:
            written()
            self._fs.pipe_file(path, data)
            return
        temporary = f"{path.removesuffix('.safetensors')}.{secrets.token_hex(6)}.part"
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        try:
            self._fs.pipe_file(temporary, data)
            written()
            self._fs.mv(temporary, path)
        finally:
            if self._fs.exists(temporary):
                self._fs.rm_file(temporary)

    def _stays(self, path: str) -> bool:
        """Whether no deletion that began before the write can still remove it, and none has."""
        while self._doomed(path):
            time.sleep(0.1)
        return bool(self._fs.exists(path))  # asked after the marks are gone: no deletion is under way any more

    def _delete_marked(self, path: str, older_than_seconds: float, unless: Callable[[], bool] | None) -> bool:
        mark, began = f"{path.removesuffix('.safetensors')}.{secrets.token_hex(6)}.doomed", time.monotonic()
        self._fs.pipe_file(mark, b"")
        try:
            if self._age(path) < older_than_seconds or (unless is not None and unless()):
                return False
            if time.monotonic() - began > _DELETE_WITHIN:
                raise StoreBusy(
                    f"a deletion at {self._place} was held up for over {_DELETE_WITHIN:g} s and given up, for it may "
                    "meet what is stored anew: run the same command again"
                )
            self._fs.rm_file(path)
        finally:
            with suppress(FileNotFoundError):  # a sweep took it
                self._fs.rm_file(mark)
        return True

    def _doomed(self, path: str) -> list[str]:
        stem = path.removesuffix(".safetensors")
        marks = [name for name in self._beside(stem) if name.startswith(f"{stem}.") and name.endswith(".doomed")]
        return [name for name in marks if self._age_or(name, _DOOMED_SECONDS) < _DOOMED_SECONDS]

    def _beside(self, stem: str) -> list[str]:
        folder, _, name = stem.rpartition("/")
        if self._scheme in _PREFIX_LISTS:
            return [str(found) for found in self._fs.find(folder, prefix=name)]
        return self._listed(folder)

    def _age(self, path: str) -> float:
        written: datetime = self._fs.modified(path)
        written = written if written.tzinfo else written.replace(tzinfo=UTC)
        return max(0.0, (datetime.now(UTC) - written).total_seconds())

    def _age_or(self, path: str, gone: float) -> float:
        try:
            return self._age(path)
        except FileNotFoundError:
            return gone

    def _path(self, namespace: str, digest: str) -> str:
        return f"{self._root}/{folder_of(namespace)}/{file_of(digest)}"

    def _shown(self, path: str) -> str:
        return self.url + path.removeprefix(self._root)

    # --- lists --------------------------------------------------------------------------------------------

    def _listed(self, folder: str, *, deep: bool = False) -> list[str]:
        """What is in a folder, or every file below it; nothing where there is no such folder."""
        try:
            found = self._fs.find(folder) if deep else self._fs.ls(folder, detail=False)
        except FileNotFoundError as error:
            self._check_bucket(error)
            return []
        return [str(path).rstrip("/") for path in found]

    def _holds(self, namespace: str) -> bool:
        shards = self._listed(f"{self._root}/{folder_of(namespace)}")
        files = (PurePosixPath(path) for shard in shards for path in self._listed(shard))
        return any(digest_at(path.parent.name, path.name) for path in files)

    def _leavings(self, older_than_seconds: float) -> list[str]:
        left = (path for path in sorted(self._listed(self._root, deep=True)) if path.endswith(_LEFT))
        return [path for path in left if self._age_or(path, -2.0) >= older_than_seconds]

    # --- errors -------------------------------------------------------------------------------------------

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn what any file system's library raises into one sentence; let a missing object through."""
        try:
            yield
        except ElmError:
            raise
        except FileNotFoundError as error:
            self._check_bucket(error)
            raise
        except Exception as error:  # each library has exceptions of its own, without a common root
            raise StorageError(f"{what} in {self._place}: {advice_on(error)}") from error

    def _check_bucket(self, error: FileNotFoundError) -> None:
        response = getattr(error.__cause__, "response", None) or {}
        if response.get("Error", {}).get("Code") == "NoSuchBucket":
            raise StorageError(
                f"the bucket of {self._place} does not exist: create it, or correct the setting tensors"
            ) from error
