"""Writing a pack: one pass for the lines, one for the tensors, then the manifest, then its signature.

All or nothing: a temporary file in the same folder, fsync, rename. Holds one memory at a time. Knows nothing of
banks; what it writes, ``packfile`` reads.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import IO, NamedTuple

from elm_agent.errors import ElmError, InputError, StorageError
from elm_agent.records import ModelFingerprint, utcnow
from elm_agent.storage.packs.container import MANIFEST, MEMORIES, SIGNATURE, TENSORS, Limits
from elm_agent.storage.packs.lines import (
    MAX_MEMORIES,
    SIGNED,
    ItemLine,
    Manifest,
    MemoryLine,
    ModelLine,
    PartLine,
    PartsLine,
    SignatureLine,
    digest_of_bytes,
    pack_id_of,
    tensor_name,
)
from elm_agent.storage.packs.reading import Progress, Shapes

Sign = Callable[[bytes], SignatureLine]
"""Told what is to be signed: ``SIGNED`` and the bytes of the manifest."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


class _Written(NamedTuple):
    """A line that is in the pack, as far as its tensors' header needs it."""

    memory_id: str
    digest: str
    shapes: Shapes


def write_pack(
    path: Path,
    lines: Iterable[MemoryLine],
    prompt: Callable[[str], bytes],
    *,
    model: ModelFingerprint,
    namespace: str,
    episodes: bool,
    shapes: Callable[[str], Shapes] | None = None,
    sign: Sign | None = None,
    before: Callable[[Manifest], None] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write the pack and return its manifest.

    Args:
        lines: in order; the first one's tensor is ``tensor_name(0)``.
        prompt: the little-endian float32 numbers of a memory's tensors, row by row; asked after the last line.
        shapes: of a memory's tensors, asked where it is no soft prompt.
        before: called when the pack lies whole on the disk, before it gets its name; if it raises, there is none.
        force: replace a file that is there.

    Raises:
        InputError: the file is there, its folder is not, or there is too much to write.
        StorageError: the disk refused. Nothing is left behind.
    """
    check_target(path, force=force)
    with _explained(path), _temporary(path) as file:
        manifest = _write(file, lines, prompt, shapes, model, namespace, episodes, sign, progress)
        file.flush()
        os.fsync(file.fileno())
        if before:
            before(manifest)
    return manifest


def _write(
    file: IO[bytes],
    lines: Iterable[MemoryLine],
    prompt: Callable[[str], bytes],
    shapes: Callable[[str], Shapes] | None,
    model: ModelFingerprint,
    namespace: str,
    episodes: bool,
    sign: Sign | None,
    progress: Progress | None,
) -> Manifest:
    with zipfile.ZipFile(file, "w", allowZip64=False) as pack:
        with _part(pack, MEMORIES, _DEFLATED) as memories:
            written = _write_lines(memories, lines, shapes)
        with _part(pack, TENSORS, _STORED) as tensors:
            digests = _write_tensors(tensors, written, prompt, progress)
        parts = PartsLine(memories=memories.stated(), tensors=tensors.stated())
        manifest = Manifest(
            format="elm-agent pack",
            format_version=1,
            pack_id=pack_id_of(model=model, namespace=namespace, parts=parts),
            library_version=version("elm-agent"),
            created_at=utcnow(),
            model=ModelLine(**asdict(model)),
            namespace=namespace,
            episodes=episodes,
            parts=parts,
            memories=tuple(ItemLine(line=w.digest, tensor=d) for w, d in zip(written, digests, strict=True)),
        )
        data = manifest.model_dump_json().encode("utf-8")
        with _part(pack, MANIFEST, _DEFLATED) as part:
            part.write(data)
        if sign:
            with _part(pack, SIGNATURE, _STORED) as part:
                part.write(sign(SIGNED + data).model_dump_json().encode("utf-8"))
    return manifest


def check_target(path: Path, *, force: bool) -> None:
    """Raise ``InputError`` unless a pack can be written to ``path``."""
    with _explained(path):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise InputError(
                    f"{_named(path)} cannot be written: its folder is not there; make it first"
                ) from None
            return
        if not stat.S_ISREG(mode):
            raise InputError(f"{_named(path)} cannot be written: it is no plain file; name another one")
        if not force:
            raise InputError(f"{_named(path)} is there: name another file, or replace it with --force")


def _write_lines(part: _Part, lines: Iterable[MemoryLine], shapes: Callable[[str], Shapes] | None) -> list[_Written]:
    written: list[_Written] = []
    for line in lines:
        data = line.model_dump_json().encode("utf-8")
        if len(data) > Limits().line:
            raise InputError(
                f"memory {line.id} has {len(data)} bytes of record, a pack takes {Limits().line}: leave "
                "its rollouts out with --no-episodes"
            )
        part.write(data + b"\n")
        of: Shapes = {"prompt": (line.virtual_tokens, line.width)}
        if shapes is not None and line.recipe.parameterisation != "soft_prompt":
            of = shapes(line.id)
        written.append(_Written(line.id, digest_of_bytes(data), of))
    if not 1 <= len(written) <= MAX_MEMORIES:
        raise InputError(
            f"a pack holds 1 to {MAX_MEMORIES} memories; got {len(written)}: choose others with --memory or --state"
        )
    return written


def _write_tensors(
    part: _Part, written: Sequence[_Written], prompt: Callable[[str], bytes], progress: Progress | None
) -> list[str]:
    """The safetensors file of all memories, one after the other; a test reads it with the library. Digest of each."""
    part.write(_header(written))
    digests = []
    for done, memory in enumerate(written, start=1):
        data = prompt(memory.memory_id)
        part.write(data)
        digests.append(digest_of_bytes(data))
        if progress:
            progress(done, len(written))
    return digests


def _header(written: Sequence[_Written]) -> bytes:
    """Eight bytes of length, then JSON, padded to eight (github.com/huggingface/safetensors, "Format")."""
    entries, at = {}, 0
    for place, memory in enumerate(written):
        for name, shape in memory.shapes.items():
            end = at + 4 * math.prod(shape)
            entries[tensor_name(place, name)] = {"dtype": "F32", "shape": shape, "data_offsets": (at, end)}
            at = end
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _Part:
    """One part that is being written: counted, hashed, and never longer than a pack may hold."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self._bytes = 0

    def write(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._bytes > Limits().part:
            raise InputError(
                f"a part of a pack holds at most {Limits().part} bytes; got more: choose fewer memories with "
                "--memory or --state"
            )
        self._hash.update(data)
        self._stream.write(data)

    def stated(self) -> PartLine:
        return PartLine(sha256="sha256:" + self._hash.hexdigest(), bytes=self._bytes)


@contextmanager
def _part(pack: zipfile.ZipFile, name: str, method: int) -> Iterator[_Part]:
    info = zipfile.ZipInfo(name)  # of 1980: the same content makes the same bytes
    info.compress_type = method
    info.create_system = 3
    info.external_attr = (stat.S_IFREG | 0o600) << 16
    with pack.open(info, "w") as stream:
        yield _Part(stream)


@contextmanager
def _temporary(path: Path) -> Iterator[IO[bytes]]:
    """A new file that becomes ``path`` at the end, whole and on the disk, or is gone."""
    temporary = path.with_name(f".elmpack-{secrets.token_hex(8)}.part")
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except ElmError:
        raise
    except zipfile.LargeZipFile:
        raise InputError(
            f"a pack has at most {Limits().pack} bytes: choose fewer memories with --memory or --state"
        ) from None
    except OSError as error:
        advice = "free some space" if error.errno in _FULL else "check the folder's owner, mode and mount"
        raise StorageError(
            f"{_named(path)} could not be written ({error.strerror or error}): {advice} and try again"
        ) from error
    except ValueError as error:
        if "null" not in str(error) and "surrogate" not in str(error):
            raise
        raise InputError(f"{_named(path)} is no file name: it holds NUL or half a character") from None


def _named(path: Path) -> str:
    return f"pack file {str(path)[-80:]!r}"
