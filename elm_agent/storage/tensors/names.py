"""Where a tensor lies inside any store: ``<folder of the namespace>/ab/<64 hex digits>.safetensors``. Pure strings.

A folder name holds no upper-case letter, so that names which differ only in case stay apart on a disk that does not
tell them apart: ``Team-B`` lies in ``+team-+b``. It reads back, so that a store can list its namespaces.
"""

from __future__ import annotations

import hashlib
import re

from elm_agent.errors import SettingsError, TensorCorrupt, TensorMissing
from elm_agent.settings import check_namespace

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_FILE = re.compile(r"([0-9a-f]{64})\.safetensors")


def digest_of_bytes(data: bytes) -> str:
    """``sha256:<hex>``, the name of the bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def folder_of(namespace: str) -> str:
    """The folder name of a namespace. Raises ``SettingsError`` for a name that is not usable."""
    checked = check_namespace(namespace)  # before it becomes a path: a name must not reach outside the store
    return "".join(f"+{letter.lower()}" if letter.isupper() else letter for letter in checked)


def namespace_of(folder: str) -> str | None:
    """The namespace whose folder this is; None for any other folder."""
    name = re.sub(r"\+([a-z])", lambda match: match[1].upper(), folder)
    try:
        return name if folder_of(name) == folder else None
    except SettingsError:
        return None


def file_of(digest: str) -> str:
    """``ab/<64 hex digits>.safetensors``. Raises ``TensorCorrupt`` for a malformed digest."""
    match = _DIGEST.fullmatch(digest)
    if match is None:  # checked before it becomes a path: a record must not reach outside the store
        raise TensorCorrupt(f"a tensor digest is 'sha256:' and 64 hex digits; got {digest[:80]!r}")
    return f"{match[1][:2]}/{match[1]}.safetensors"


def digest_at(parent: str, file: str) -> str | None:
    """The digest of the tensor in this file of this two-letter folder; None for any other file."""
    match = _FILE.fullmatch(file)
    return f"sha256:{match[1]}" if match and parent == file[:2] else None


def checked_bytes(data: bytes, digest: str, place: str) -> bytes:
    """``data``, if they are what ``digest`` says; raises ``TensorCorrupt``."""
    found = digest_of_bytes(data)
    if found != digest:
        raise TensorCorrupt(
            f"tensor {place} was altered: expected {digest[:19]}…, got {found[:19]}… ({len(data)} bytes); "
            "run `elm-agent doctor --repair`"
        )
    return data


def missing(digest: str, place: str) -> TensorMissing:
    """The error for a tensor that is not at ``place``."""
    return TensorMissing(f"tensor {digest[:19]}… is not at {place}; run `elm-agent doctor --repair`")
