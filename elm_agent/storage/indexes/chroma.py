"""Nearest keys in an embedded Chroma folder. Knows nothing of SQL: it is fed from outside and may lose everything.

Chroma embedded bears one process only, and a damaged folder can end the process that opens it. So one owner
holds a file lock beside the folder, everybody else gets ``IndexUnavailable`` and scans exactly; a child process
opens the folder first, and a broken one is moved aside and begun anew (``rebuilt``).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex

from filelock import FileLock, Timeout

from elm_agent.errors import IndexUnavailable
from elm_agent.protocols import IndexCapability
from elm_agent.storage.indexes.chroma_keys import ChromaKeys, explained
from elm_agent.storage.indexes.chroma_probe import BROKEN, open_client
from elm_agent.storage.indexes.heap import can_overwrite, overwritten

_MARK = "must_be_fed"
_NAME = "name"
_CRASHES = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGILL, -signal.SIGFPE}


class ChromaIndex(ChromaKeys):
    """A ``KeyIndex`` in ``directory``, opened at first use. Approximate: the caller re-checks what it gets.

    ``probe_seconds``: how long the child process may take; it rebuilds the graph of every collection. ``broken``:
    another way to let a process of its own open a folder, told the folder and those seconds; whether it is broken.
    """

    capabilities = frozenset(
        {IndexCapability.BASE, IndexCapability.DURABLE, IndexCapability.WIDE}
        | ({IndexCapability.ERASES} if can_overwrite() else set())
    )
    width_limit: int | None = None

    def __init__(
        self, directory: Path, *, probe_seconds: float = 600.0, broken: Callable[[Path, float], bool] | None = None
    ) -> None:
        super().__init__()
        self.directory = Path(directory).absolute()
        self._probe_seconds = probe_seconds
        self._broken = broken or _broken
        self._owner = FileLock(self.directory.with_name(self.directory.name + ".lock"), thread_local=False)

    @property
    def name(self) -> str:
        """Each folder has its own: two machines with one database have two, and each its own watermark."""
        try:
            return f"chroma-{(self.directory / _NAME).read_text('ascii')}"
        except FileNotFoundError:
            return "chroma"

    @property
    def rebuilt(self) -> bool:
        """Whether the folder began anew and was not yet acknowledged: everything must be fed again.

        Survives a crash. Opens the index, so it raises ``IndexUnavailable`` in a process that is not the owner.
        """
        with self._open():
            return (self.directory / _MARK).exists()

    def acknowledge_rebuild(self) -> None:
        """The feeder has forgotten how far it had come; from now on the folder counts as its own."""
        with self._open():
            (self.directory / _MARK).unlink(missing_ok=True)

    def scrub(self, namespace: str) -> bool:  # noqa: ARG002  the log, which keeps every deleted vector, is one for all
        """Begin anew: the only way that leaves nothing. Every namespace has to be fed again (``rebuilt``)."""
        self.wipe()
        return True

    def wipe(self) -> None:
        """Begin anew with an empty folder; works on a broken one too, and deletes what was kept of an earlier one."""
        with self._lock, overwritten():
            self._own()
            self._disconnect()
            with explained(partial(_unavailable, self.directory)):
                name = self._kept_name()
                for folder in (self.directory, self._aside):
                    if folder.exists():
                        shutil.rmtree(folder)
                self._begin(name)
                self._client = open_client(self.directory)

    def close(self) -> None:
        """Give the folder back. The index opens again at its next use."""
        with self._lock:
            self._disconnect()
            self._owner.release()

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Hold the lock and an open client; explain whatever Chroma raises."""
        with self._lock, overwritten():
            if self._client is None:
                self._own()
                with explained(partial(_unavailable, self.directory)):
                    self._prepare()
                    self._client = open_client(self.directory)
            with explained(partial(_unavailable, self.directory)):
                yield

    def _own(self) -> None:
        if self._owner.is_locked:
            return
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            self._owner.acquire(blocking=False)
        except Timeout:
            raise IndexUnavailable(
                f"the Chroma index {self.directory} is held by another process; Chroma bears only one, so this "
                "process scans the keys exactly"
            ) from None
        except OSError as error:
            raise IndexUnavailable(f"the Chroma index {self.directory} cannot be locked: {error.strerror}") from error

    def _prepare(self) -> None:
        """After this the folder is one that a child process has opened, or a new one."""
        if not (self.directory / "chroma.sqlite3").exists():
            self._begin(self._kept_name())
            return
        if not os.access(self.directory, os.W_OK):
            raise IndexUnavailable(f"the Chroma index {self.directory} is not writable; check its owner and mount")
        if self._broken(self.directory, self._probe_seconds):
            name = self._kept_name()
            if self._aside.exists():
                shutil.rmtree(self._aside)
            self.directory.rename(self._aside)
            self._begin(name)

    @property
    def _aside(self) -> Path:
        """Where a broken folder is kept for inspection, the last one."""
        return self.directory.with_name(self.directory.name + ".broken")

    def _kept_name(self) -> str:
        """That of the folder, also when its content goes: what was fed to it is noted by it."""
        known = self.name.removeprefix("chroma").removeprefix("-")
        return known or token_hex(4)

    def _begin(self, own_name: str) -> None:
        """The mark is on disk before anything else: a crash from here on cannot lose that a feed is due."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, text in ((_NAME, own_name), (_MARK, "")):
            with open(self.directory / name, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        self._collections.clear()
        if client is not None:
            client.close()


def _broken(directory: Path, seconds: float) -> bool:
    """Let a child process open the folder. Raises ``IndexUnavailable`` when that says nothing about the folder."""
    command = [sys.executable, "-m", "elm_agent.storage.indexes.chroma_probe", str(directory)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        child = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise IndexUnavailable(f"the Chroma index {directory} took more than {seconds:.0f} s to open") from None
    if child.returncode == 0:
        return False
    if child.returncode == BROKEN or child.returncode in _CRASHES:
        return True
    last = (child.stderr.strip().splitlines() or ["no message"])[-1]
    raise IndexUnavailable(f"the Chroma index {directory} could not be tried (status {child.returncode}): {last}")


def _unavailable(directory: Path, error: BaseException) -> IndexUnavailable:
    return IndexUnavailable(
        f"the Chroma index {directory} failed ({type(error).__name__}: {str(error)[:200]}); keys are scanned "
        "exactly, and `elm-agent doctor --repair` rebuilds it"
    )
