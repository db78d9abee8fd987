"""What surrounds a measurement: versions, platform, and which code it was."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import elm_agent

PACKAGES = ("elm-agent", "torch", "transformers", "trl", "peft", "onnxruntime", "numpy")


def about(command: str) -> dict[str, Any]:
    """The environment, as far as it is known before anything is opened."""
    return {
        "command": command,
        "commit": commit_of(Path(elm_agent.__file__)),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def commit_of(file: Path) -> str | None:
    """The commit of the checkout that ``file`` is in, "-dirty" when files differ from it; None: it is in none.

    A file that a checkout only contains, as in an environment inside of it, is not of its commit.
    """
    git = ["git", "--no-optional-locks", "-C", str(file.parent)]
    try:
        _told([*git, "ls-files", "--error-unmatch", file.name])
        return _told([*git, "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"])
    except (OSError, subprocess.CalledProcessError):
        return None  # installed, or there is no git


def _told(words: list[str]) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
