"""The container of a pack: a ZIP that holds exactly the named parts and nothing else, read as a stream.

Refuses by ``InputError``, before a byte is unpacked, whatever is not plainly that: other or doubled names (and so
every path), links, encryption, comments, bytes between or around the parts, ZIP64, sizes and ratios beyond the
limits. Nothing is ever unpacked to a disk, and no more than a chunk or a line is held. Knows nothing of memories.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from elm_agent.errors import InputError
from elm_agent.storage.packs.lines import refuse

MANIFEST, MEMORIES, TENSORS, SIGNATURE = "manifest.json", "memories.jsonl", "tensors.safetensors", "signature.json"
REQUIRED = (MANIFEST, MEMORIES, TENSORS)

CHUNK = 1 << 18
_END = struct.Struct("<4s4H2LH")  # APPNOTE 6.3.10, section 4.3.16: end of central directory
_LOCAL = 30  # bytes of a local header without its name, section 4.3.7
_ENTRY = 46  # and of an entry of the central directory, section 4.3.12
_FLAGS = 0x0806  # deflate's effort and UTF-8 names; all others change what the bytes mean
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError, OverflowError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a pack may hold, in bytes. A part below ``small`` is no bomb, however well it was pressed."""

    pack: int = 2**31 - 1
    part: int = 2**31 - 1
    manifest: int = 1 << 25
    signature: int = 1 << 12
    line: int = 1 << 24
    ratio: int = 200
    small: int = 1 << 24


class PackZip:
    """An open pack. A context manager; ``part`` streams one part, as often as asked."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.what = f"pack {path.name[:80]!r}"
        self.limits = limits
        self._file = _open(path, self.what)
        try:
            with _explained(self.what):
                self._check_end()
                self._zip = zipfile.ZipFile(self._file)
            self.infos = self._check_entries(self._zip.infolist())
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> PackZip:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()
        self._file.close()

    def size(self, name: str) -> int:
        """Bytes of a part as the ZIP declares them; reading stops there."""
        return self.infos[name].file_size

    @contextmanager
    def part(self, name: str) -> Iterator[Part]:
        with _explained(self.what):
            stream = self._zip.open(self.infos[name])
        with stream:
            yield Part(stream, f"{self.what}, {name}")

    def read(self, name: str, limit: int) -> bytes:
        """A whole small part."""
        if self.size(name) > limit:
            refuse(self.what, f"{name} has {self.size(name)} bytes, expected at most {limit}")
        with self.part(name) as part:
            data = part.read(self.size(name))
            part.finish()
        return data

    def _check_end(self) -> None:
        """The last 22 bytes end the directory, and the directory is small and lies right before them."""
        size = os.fstat(self._file.fileno()).st_size
        if size > self.limits.pack:
            refuse(self.what, f"it has {size} bytes, expected at most {self.limits.pack}")
        if size < _END.size:
            refuse(self.what, f"it has {size} bytes, too few for a ZIP file")
        self._file.seek(size - _END.size)
        mark, disk, first, here, entries, length, start, comment = _END.unpack(self._file.read(_END.size))
        if mark != b"PK\x05\x06" or disk or first or comment or here != entries:
            refuse(self.what, "it is no ZIP file in one piece that ends with its directory")
        if entries not in (3, 4):
            refuse(self.what, f"it holds {entries} entries, expected {', '.join(REQUIRED)} and perhaps {SIGNATURE}")
        if start + length + _END.size != size or length > entries * (_ENTRY + 64):
            refuse(self.what, "its directory is not where or as long as a pack has it")

    def _check_entries(self, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        found: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            name = info.orig_filename
            if name not in (*REQUIRED, SIGNATURE) or name in found:
                refuse(
                    self.what, f"it holds {name[:60]!r}{' twice' if name in found else ''}, expected only the parts"
                )
            found[name] = info
            self._check_entry(info)
        if missing := [name for name in REQUIRED if name not in found]:
            refuse(self.what, f"{missing[0]} is not in it")
        self._check_places(infos)
        return found

    def _check_entry(self, info: zipfile.ZipInfo) -> None:
        name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            refuse(self.what, f"{name} is a link, folder or device, expected a plain file")
        if info.flag_bits & ~_FLAGS or info.extra or info.comment:
            refuse(self.what, f"{name} is encrypted or carries more than its bytes, expected a plain file")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            refuse(self.what, f"{name} is packed by method {info.compress_type}, expected 0 (stored) or 8 (deflated)")
        if info.file_size > self.limits.part:
            refuse(self.what, f"{name} has {info.file_size} bytes, expected at most {self.limits.part}")
        if info.file_size > max(self.limits.small, self.limits.ratio * info.compress_size):
            refuse(self.what, f"{name} unpacks to more than {self.limits.ratio} times its size, as bombs do")

    def _check_places(self, infos: list[zipfile.ZipInfo]) -> None:
        """The parts follow each other without gap or overlap, from the first byte to the directory."""
        place = 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            if info.header_offset != place:
                refuse(self.what, f"{info.orig_filename} does not begin where the part before it ends")
            place += _LOCAL + len(info.orig_filename) + info.compress_size
        if place != self._zip.start_dir:
            refuse(self.what, "there are bytes between its parts and its directory")


class Part:
    """The bytes of one part, in order, counted and hashed."""

    def __init__(self, stream: IO[bytes], what: str) -> None:
        self.what = what
        self.bytes = 0
        self._stream = stream
        self._buffer = bytearray()
        self._hash = hashlib.sha256()

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes."""
        while len(self._buffer) < count:
            if not self._fill():
                refuse(self.what, f"it ends {count - len(self._buffer)} bytes too early")
        return self._take(count)

    def line(self, limit: int) -> bytes:
        """The next line without its end; at most ``limit`` bytes."""
        seen = 0
        while (end := self._buffer.find(b"\n", seen, limit + 1)) < 0:
            seen = len(self._buffer)
            if seen > limit:
                refuse(self.what, f"a line is longer than {limit} bytes")
            if not self._fill():
                refuse(self.what, "it has fewer lines than the manifest says, or no end of line")
        return self._take(end + 1)[:-1]

    def finish(self) -> str:
        """That nothing is left; the digest of all bytes."""
        if self._buffer or self._fill():
            refuse(self.what, "it goes on after what the manifest says")
        return "sha256:" + self._hash.hexdigest()

    def _fill(self) -> bool:
        with _explained(self.what):
            chunk = self._stream.read(CHUNK)
        self._hash.update(chunk)
        self.bytes += len(chunk)
        self._buffer += chunk
        return bool(chunk)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


def _open(path: Path, what: str) -> IO[bytes]:
    """A plain file, open; a pipe or device would never end."""
    try:
        plain = stat.S_ISREG(os.stat(path).st_mode)
        file = open(path, "rb") if plain else None  # noqa: SIM115 - the caller closes it
    except FileNotFoundError:
        raise InputError(f"{what} is not there: expected a file that `elm-agent export` made") from None
    except OSError as error:
        raise InputError(f"{what} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"{what} cannot be read: its name holds NUL or half a character") from None
    if file is None:
        raise InputError(f"{what} cannot be read: it is no plain file; expected one that `elm-agent export` made")
    return file


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Around single reads only: what callers do with the bytes fails in its own words."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{what} cannot be read: {error.strerror or error}") from error
    except _BROKEN as error:
        refuse(what, f"its ZIP structure is broken ({str(error)[:80] or type(error).__name__})")
