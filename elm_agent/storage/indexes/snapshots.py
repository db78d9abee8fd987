"""Snapshots of keys as files that any process maps into memory. Knows nothing of SQL, and decides no freshness.

``FOLDER/<namespace>/<kind>/<revision>-<token>/`` holds ``keys.npy``, float32 (N, width), and ``about.json``: what
the keys belong to, their ids in order, a checksum. A snapshot never changes: it is written under a temporary name,
synced and renamed, and takes the place of its elders; who still maps one of those keeps it until he lets go. What
is damaged is deleted: everything here can be made again from the database.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from elm_agent.errors import ElmError, StorageError
from elm_agent.records import KeyKind

FORMAT = 1
_NAME = re.compile(r"(\d{20})-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class Mark:
    """The state a snapshot shows: the namespace's ``revision``, and ``origin``, which tells histories apart."""

    revision: int
    origin: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``keys``: float32 (N, width), mapped from the file; row r belongs to ``ids[r]``."""

    mark: Mark
    ids: list[str]
    keys: NDArray[np.float32]


class Snapshots:
    """All snapshots under ``folder``. Any process may read and write."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).absolute()

    def newest(self, namespace: str, kind: KeyKind, trusted: Callable[[Mark], bool]) -> Snapshot | None:
        """The newest whole snapshot whose mark is ``trusted``, asked before its keys are read. Damaged ones go."""
        for path in reversed(_listed(self._place(namespace, kind))):
            try:
                about = _about(path)
                if not trusted(_mark(about)):
                    continue
                return _read(path, about, namespace, kind)
            except FileNotFoundError:  # a younger one has just taken its place, or a scrub took it away
                continue
            except ElmError:  # the bank could not be asked
                raise
            except OSError as error:
                raise StorageError(f"the snapshot {path} cannot be read: {error.strerror}; delete it") from error
            except Exception:  # noqa: BLE001 - damaged bytes can raise anything, and all of it means the same
                shutil.rmtree(path, ignore_errors=True)  # another process may be deleting it too
        return None

    def any(self, namespace: str, kind: KeyKind) -> bool:
        """Whether there is one, whole or not, trusted or not."""
        return bool(_listed(self._place(namespace, kind)))

    def write(
        self,
        namespace: str,
        kind: KeyKind,
        mark: Mark,
        ids: list[str],
        chunks: Iterable[NDArray[np.float32]],
        width: int,
        current: Callable[[], bool],
    ) -> Snapshot | None:
        """Write a snapshot and delete its elders; None when ``current`` says no at the last moment.

        ``chunks``: the keys of ``ids``, in order, as parts (n, width). Raises ``StorageError``; what could not be
        written leaves nothing behind.
        """
        place = self._place(namespace, kind)
        try:
            place.mkdir(parents=True, exist_ok=True)
            with self._alone(namespace):
                _sweep(place)
                temporary = place / f".{token_hex(8)}"
                try:
                    temporary.mkdir()
                    _write(temporary, namespace, kind, mark, ids, chunks, width)
                    if not current():
                        return None
                    final = place / f"{mark.revision:020d}-{token_hex(4)}"
                    temporary.rename(final)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)  # after the rename there is nothing
                _sync_folder(place)
                for path in _listed(place):
                    if path != final:
                        shutil.rmtree(path, ignore_errors=True)  # the next writer tries again
                return _read(final, _about(final), namespace, kind)
        except OSError as error:
            raise StorageError(f"a snapshot of keys cannot be written in {place}: {error}") from error

    def examine(self, *, repair: bool) -> Iterator[tuple[Path, bool]]:
        """Every snapshot, and whether it is whole; with ``repair`` those that are not are deleted."""
        for path in sorted(path for path in self.folder.glob("*/*/*") if _NAME.fullmatch(path.name)):
            try:
                about = _about(path)
                namespace, kind = about["namespace"], KeyKind(path.parent.name)
                _read(path, about, namespace, kind)
                whole = path.parent == self._place(namespace, kind)
            except FileNotFoundError:
                whole = not path.exists()  # a younger one has just taken its place
            except OSError as error:
                raise StorageError(f"the snapshot {path} cannot be read: {error.strerror}; delete it") from error
            except Exception:  # noqa: BLE001 - damaged bytes can raise anything, and all of it means the same
                whole = False
            if not whole and repair:
                shutil.rmtree(path, ignore_errors=True)  # another process may be deleting it too
            yield path, whole

    def scrub(self, namespace: str) -> None:
        """Delete every snapshot of the namespace."""
        if (self.folder / folder_name(namespace)).exists():
            with self._alone(namespace):
                for kind in KeyKind:
                    _delete(self._place(namespace, kind))

    def wipe(self) -> None:
        """Delete everything."""
        _delete(self.folder)

    def _place(self, namespace: str, kind: KeyKind) -> Path:
        return self.folder / folder_name(namespace) / kind.value

    @contextmanager
    def _alone(self, namespace: str) -> Iterator[None]:
        with FileLock(self.folder / folder_name(namespace) / ".lock"):
            yield


def folder_name(namespace: str) -> str:
    """A name of its own for every namespace, on any file system; the readable part is for people."""
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", namespace)[:40]
    return f"{readable}-{hashlib.sha256(namespace.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"


def _listed(place: Path) -> list[Path]:
    """Oldest revision first."""
    try:
        return sorted(path for path in place.iterdir() if _NAME.fullmatch(path.name))
    except FileNotFoundError:
        return []


def _write(
    folder: Path,
    namespace: str,
    kind: KeyKind,
    mark: Mark,
    ids: list[str],
    chunks: Iterable[NDArray[np.float32]],
    width: int,
) -> None:
    file = folder / "keys.npy"
    keys = np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype("<f4"), shape=(len(ids), width))
    start = 0
    for chunk in chunks:
        keys[start : start + len(chunk)] = chunk
        start += len(chunk)
    if start != len(ids):
        raise ValueError(f"got {start} keys for {len(ids)} ids")
    about: dict[str, Any] = {
        "format": FORMAT,
        "namespace": namespace,
        "kind": kind.value,
        "revision": mark.revision,
        "origin": mark.origin,
        "ids": ids,
    }
    about["crc32"] = _checksum(about, keys)
    keys.flush()
    del keys
    for path, data in ((folder / "about.json", json.dumps(about).encode()), (file, None)):
        with open(path, "r+b" if data is None else "wb") as opened:
            opened.write(data or b"")
            opened.flush()
            os.fsync(opened.fileno())
    _sync_folder(folder)


def _about(folder: Path) -> dict[str, Any]:
    """All but the keys. Raises whatever damage leads to."""
    about: dict[str, Any] = json.loads((folder / "about.json").read_bytes())
    return about


def _mark(about: dict[str, Any]) -> Mark:
    return Mark(int(about["revision"]), str(about["origin"]))


def _read(folder: Path, about: dict[str, Any], namespace: str, kind: KeyKind) -> Snapshot:
    """Raises whatever the damage leads to for anything that is not what was written."""
    about = dict(about)
    keys = np.load(folder / "keys.npy", mmap_mode="r", allow_pickle=False)
    checksum, ids = about.pop("crc32"), about["ids"]
    if (about["format"], about["namespace"], about["kind"]) != (FORMAT, namespace, kind.value):
        raise ValueError("another format, namespace or kind")
    if keys.dtype != np.dtype("<f4") or keys.ndim != 2 or len(keys) != len(ids) or _checksum(about, keys) != checksum:
        raise ValueError("the keys are not those that were written")
    return Snapshot(_mark(about), ids, keys)


def _checksum(about: dict[str, Any], keys: NDArray[np.float32]) -> int:
    """CRC-32 of everything. Against accidents; who may write here may write the database too."""
    return zlib.crc32(keys.data, zlib.crc32(json.dumps(about, sort_keys=True).encode()))


def _sweep(place: Path) -> None:
    """Delete what a killed writer left. Only under the lock."""
    for path in place.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)


def _delete(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"the snapshots in {folder} cannot be deleted: {error.strerror}; delete them") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
