"""Banks from before namespaces had folders keep tensors right under ``<directory>/ab/``: give each its place.

The database says whose a tensor is; every namespace that names it gets a copy of its own, and only then does the old
file go. A crash at any point leaves the old file, so that the next opening goes on; a file that no memory names is
left to the doctor under a temporary name, once it is too old to be part of a publication.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import select

from elm_agent.errors import StorageError
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import MemoryRow
from elm_agent.storage.tensors.local import LocalTensors, age_of, disk_advice, locked, sync_folder
from elm_agent.storage.tensors.names import digest_at, digest_of_bytes

_SHARD = re.compile("[0-9a-f]{2}")
_WAIT_SECONDS = 600.0  # for another process that is doing it; a million small files take minutes
_IN_FLIGHT_SECONDS = 3600.0  # a writer of the old layout names its tensor within milliseconds


def adopt_flat_tensors(database: Database, store: LocalTensors) -> int:
    """Move every tensor of the old layout to the namespaces that name it; how many files left the old place.

    Idempotent, and done once when several processes open the bank together. Quick where there is nothing to do.

    Raises:
        StorageError: the folder cannot be written, or its disk is full; the bank is then as it was.
    """
    if next(_flat_files(store.directory), None) is None:
        return 0
    try:
        with locked(store.directory / ".flat.lock", _WAIT_SECONDS):
            owners = _owners(database)
            return sum(_adopt(store, path, digest, owners) for path, digest in list(_flat_files(store.directory)))
    except StorageError:  # of the database or the lock
        raise
    except OSError as error:
        advice = disk_advice(error, store.directory)
        raise StorageError(
            f"the tensors of an older bank could not be moved to their namespaces: {advice}"
        ) from error


def _flat_files(directory: Path) -> Iterator[tuple[Path, str]]:
    for shard in directory.glob("??"):
        if _SHARD.fullmatch(shard.name):
            for path in shard.glob("*.safetensors"):
                if (digest := digest_at(shard.name, path.name)) is not None:
                    yield path, digest


def _owners(database: Database) -> dict[str, set[str]]:
    """The namespaces that name each digest."""
    owners: dict[str, set[str]] = defaultdict(set)
    with database.read() as session:
        for namespace, digest in session.execute(select(MemoryRow.namespace, MemoryRow.tensor_digest).distinct()):
            owners[digest].add(namespace)
    return owners


def _adopt(store: LocalTensors, path: Path, digest: str, owners: dict[str, set[str]]) -> int:
    named = sorted(owners.get(digest, ()))
    if not named and age_of(path) < _IN_FLIGHT_SECONDS:
        return 0
    for namespace in named:
        _copy(path, store.path(namespace, digest), digest)
    if named:
        path.unlink()
    else:
        os.replace(path, path.with_suffix(".unnamed.part"))  # ``LocalTensors.sweep`` knows it by its end
    sync_folder(path.parent)
    return 1


def _copy(source: Path, target: Path, digest: str) -> None:
    """A durable file at ``target``, atomically. Not a hard link: what damages one would damage all."""
    if target.exists() and digest_of_bytes(target.read_bytes()) == digest:  # a crash came after this copy
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.stem}.{secrets.token_hex(6)}.part")
    try:
        shutil.copy2(source, temporary)  # with its age, which the doctor judges by
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    for folder in (target.parent, target.parent.parent, target.parent.parent.parent):
        sync_folder(folder)
