"""A witness of what Python code does to the machine: files opened for writing, folders made, programs started.

An audit hook (PEP 578) sees it whoever asks for it, and cannot be taken out again; it only listens between ``arm``
and ``disarm``. What native libraries do on their own is not seen: for that the listing of a folder is compared.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PATHS = {"os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime", "sqlite3.connect"}
_TWO_PATHS = {"os.rename", "os.link", "os.symlink", "shutil.move", "shutil.copyfile"}
_NEVER = {
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.system",
    "pickle.find_class",
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Notes everything but reading, and writing within ``allowed``."""

    def __init__(self, allowed: Path) -> None:
        self.allowed = os.path.realpath(allowed)
        self.seen: list[str] = []
        self._armed = False
        sys.addaudithook(self._hear)

    @contextmanager
    def armed(self) -> Iterator[None]:
        self._armed = True
        try:
            yield
        finally:
            self._armed = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        if event == "open":
            path, _mode, flags = arguments
            if isinstance(flags, int) and flags & _WRITING and not self._inside(path):
                self.seen.append(f"open for writing: {path!r}")
        elif event in _PATHS:
            if not self._inside(arguments[0]):
                self.seen.append(f"{event}: {arguments[0]!r}")
        elif event in _TWO_PATHS:
            if not (self._inside(arguments[0]) and self._inside(arguments[1])):
                self.seen.append(f"{event}: {arguments[:2]!r}")
        elif event in _NEVER:
            self.seen.append(f"{event}: {str(arguments)[:200]}")

    def _inside(self, path: Any) -> bool:
        if isinstance(path, int):  # an open file again
            return True
        real = os.path.realpath(os.fsdecode(path))
        return real == self.allowed or real.startswith(self.allowed + os.sep)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below, with size and time of change."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            status = os.lstat(path)
            found[path] = (status.st_size, status.st_mtime_ns)
    return found
