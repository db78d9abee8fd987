"""The results file of a stream: append-only JSON lines, each on disk before the next question is asked.

Knows nothing of models or banks. A process may be killed at any byte: the next one mends the last line, sees
what is answered and goes on. One writer at a time; a file that something else wrote is never touched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from elm_agent.errors import InputError, StorageError, StoreBusy

FIRST_KEY = b'{"line":'
"""Every record begins so; a cut last line is only mended if it could be the beginning of one."""


class ResultsFile:
    """``records`` holds the last record of every line number; ``mended`` says that a cut line was dropped."""

    def __init__(self, path: Path) -> None:
        """Open or create ``path``.

        Raises:
            InputError: the file is there and is not a results file.
            StoreBusy: another run is writing it.
            StorageError: it cannot be read or written.
        """
        self.path = path
        self.mended = False
        self.records: dict[int, dict[str, Any]] = {}
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreBusy(f"another run is writing {path}: wait for it, or name another file") from None
        except OSError as error:
            raise StorageError(f"results file {path} cannot be opened: {error.strerror}") from error
        try:
            self._file = self._open()
        except BaseException:
            self._lock.release()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record; it is on disk when this returns. ``record["line"]`` comes first.

        Raises:
            StorageError: the disk refuses, for example because it is full.
        """
        whole = {"line": record["line"]} | dict(record)
        text = json.dumps(whole, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        left = text.encode("utf-8", "backslashreplace") + b"\n"  # half a surrogate pair becomes its JSON escape
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(f"results file {self.path} cannot be written: {error.strerror}") from error
        self.records[whole["line"]] = whole

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        self._file.close()
        self._lock.release()

    def _open(self) -> FileIO:
        try:
            data = self.path.read_bytes() if self.path.exists() else None
            whole, tail = _split(data or b"")
            self.records = {record["line"]: record for record in _parse(whole, self.path)}
            kept = self._tail(tail)
            file = self.path.open("r+b" if data is not None else "xb", buffering=0)
            if tail != kept:
                file.truncate(len(data or b"") - len(tail))
                self.mended = True
            file.seek(0, os.SEEK_END)
            if kept:
                file.write(b"\n")
            os.fsync(file.fileno())
            _sync_folder(self.path.parent)
        except OSError as error:
            raise StorageError(f"results file {self.path} cannot be opened: {error.strerror}") from error
        return file

    def _tail(self, tail: bytes) -> bytes:
        """The last line when it has no end: kept if it is whole, dropped if it was cut."""
        if not tail:
            return b""
        try:
            [record] = _parse([tail], self.path)
        except InputError:
            if not tail.startswith(FIRST_KEY) and not FIRST_KEY.startswith(tail):
                raise
            return b""
        self.records[record["line"]] = record
        return tail


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    *whole, tail = data.split(b"\n")
    return whole, tail


def _parse(lines: Iterable[bytes], path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:  # also not UTF-8
            record = None
        if not (isinstance(record, dict) and isinstance(record.get("line"), int) and "question_digest" in record):
            raise InputError(
                f"line {number} of {path} is not a record of a run: it is left as it is; "
                "name another results file, or move this one away"
            )
        records.append(record)
    return records


def _sync_folder(folder: Path) -> None:
    """The name of a new file is only durable with its folder."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
