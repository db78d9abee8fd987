"""What identifies a model: digests of its weights, its tokenizer and its chat template.

Reading gigabytes at each start would be slow, so the digest of a file is remembered in the cache under the
file's path, size and modification time.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elm_agent.errors import ModelUnavailable
from elm_agent.models.download import file_sha256
from elm_agent.records import ModelFingerprint, digest_of


def fingerprint_of(name: str, folder: Path, tokenizer: Any, *, width: int, cache: Path) -> ModelFingerprint:
    """The fingerprint of a loaded model folder. ``width``: E; ``cache``: where digests are remembered."""
    files = weight_files(folder)
    weights = [[file.name, remembered_digest(file, file_sha256, cache)] for file in files]
    return ModelFingerprint(
        name=name,
        weights=digest_of(weights),
        tokenizer=_tokenizer_digest(folder, tokenizer, cache),
        template=digest_of(tokenizer.chat_template),
        width=width,
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a model is loaded from, by name.

    Raises:
        ModelUnavailable: there is none; weights in pickle files are not read.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
    raise ModelUnavailable(
        f"{folder} holds no safetensors weights: expected model.safetensors or model.safetensors.index.json "
        "(weights in pickle files are not read, since they can run code)"
    )


def remembered_digest(file: Path, digest: Callable[[Path], str], cache: Path) -> str:
    """``digest(file)``, or what it gave when the file last had this path, size and modification time."""
    status = file.stat()
    key = digest_of([os.fspath(file.resolve()), status.st_size, status.st_mtime_ns, digest.__name__])
    note = cache / "digests" / key.removeprefix("sha256:")
    if note.exists():
        return note.read_text("ascii")
    found = digest(file)
    note.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=note.parent, encoding="ascii", delete=False) as temporary:
        temporary.write(found)
    Path(temporary.name).replace(note)
    return found


def canonical_json_digest(file: Path) -> str:
    """Digest of what a JSON file says, however it is laid out."""
    return digest_of(json.loads(file.read_text("utf-8")))


def _tokenizer_digest(folder: Path, tokenizer: Any, cache: Path) -> str:
    file = folder / "tokenizer.json"
    if file.is_file():
        return remembered_digest(file, canonical_json_digest, cache)
    return digest_of([sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_tokens)])
