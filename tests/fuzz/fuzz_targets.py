"""What is fuzzed: packs, settings files, tensors. A target takes bytes, and works in a folder of its own.

Raising anything but ``ElmError`` is a crash, and so is a message that is no short sentence. The first byte chooses
between bytes as they are and edits of something valid.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "storage"))  # the packs that the storage tests make

import pack_helpers
import torch
from fuzz_edits import NASTY, Choices, edit_bytes, edit_json
from pydantic import BaseModel

from elm_agent.adapters import PROJECTIONS, Kept, KeyValues, LowRank, from_bytes, to_bytes
from elm_agent.errors import ElmError
from elm_agent.records import Recipe
from elm_agent.runtime import check_settings
from elm_agent.settings import Settings, load_settings
from elm_agent.softprompt import SoftPrompt
from elm_agent.storage.bank import Bank
from elm_agent.storage.ledger.signing import SigningKey
from elm_agent.storage.packs.lines import SignatureLine
from elm_agent.storage.packs.transfer import import_pack
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors

LONGEST = 2_000  # characters of an error: whoever made the input must not flood the one who reads it


class PackTarget:
    """Import what the bytes say into a bank: whatever passes the checks is stored, so it must be storable as well."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "input.elmpack"
        self.bank = Bank(
            Database.open(f"sqlite:///{folder / 'bank.sqlite'}"), LocalTensors(folder / "tensors"), index="exact"
        )
        self.bank.bind("default", pack_helpers.MODEL)
        key = SigningKey.generate()

        def sign(data: bytes) -> SignatureLine:
            return SignatureLine(public_key=str(key.public), signature=key.sign(data))

        self.bases = []
        for name, more in {"plain": {}, "bare": {"episodes": False}, "signed": {"sign": sign}}.items():
            pack_helpers.make_pack(folder / name, 2, **more)
            self.bases.append(((folder / name).read_bytes(), pack_helpers.parts_of(folder / name)))

    def __call__(self, data: bytes) -> None:
        choices = Choices(data)
        self.path.write_bytes(self._made(choices))
        import_pack(self.bank, "default", self.path, actor="fuzzer")

    def _made(self, choices: Choices) -> bytes:
        how = choices.below(8)
        if how == 0:
            return choices.rest()
        whole, parts = choices.one(self.bases)
        if how <= 2:  # the container
            for _ in range(1 + choices.below(3)):
                whole = edit_bytes(whole, choices)
            return whole
        parts = dict(parts)
        for _ in range(1 + choices.below(3)):
            name = choices.one(sorted(parts))
            parts[name] = _edit_part(name, parts[name], choices)
        if how >= 5:
            parts = _honest(parts)
        if how == 7:
            return _zipped(parts, choices)
        return _zipped(parts, None)


def _edit_part(name: str, data: bytes, choices: Choices) -> bytes:
    if choices.below(4) == 0:
        return edit_bytes(data, choices)
    if name == "memories.jsonl":
        lines = data.split(b"\n")
        place = choices.below(len(lines))
        lines[place] = edit_json(lines[place], choices)
        return b"\n".join(lines)
    if name == "tensors.safetensors":
        return _edit_header(data, choices)
    return edit_json(data, choices)


def _edit_header(data: bytes, choices: Choices) -> bytes:
    """Another safetensors header, its length put right most of the time."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = edit_json(data[8:end], choices)
    length = len(header) if choices.below(8) else choices.one((0, 2**63, 2**64 - 1, len(header) + 1))
    return length.to_bytes(8, "little") + header + data[end:]


def _honest(parts: dict[str, bytes]) -> dict[str, bytes]:
    """With right digests where the parts still allow to find them out."""
    try:
        return pack_helpers.honest(parts)
    except (ValueError, LookupError, TypeError, AttributeError, MemoryError, OverflowError):
        return parts


def _zipped(parts: dict[str, bytes], choices: Choices | None) -> bytes:
    """As a ZIP; with ``choices`` one entry is odd: its name, kind, method or place."""
    made = io.BytesIO()
    odd = choices.one(sorted(parts)) if choices else None
    with zipfile.ZipFile(made, "w") as file:
        for name, data in parts.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if choices and name == odd:
                match choices.below(5):
                    case 0:
                        info = zipfile.ZipInfo(choices.one(("../x", "/x", "a/", "manifest.json ", "x.zip", "é")))
                    case 1:
                        info.external_attr = choices.below(2**16) << 16
                    case 2:
                        info.compress_type = choices.one((0, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
                    case 3:
                        info.extra = choices.take(choices.below(16))
                    case _:
                        data = bytes(1_000_000)
            file.writestr(info, data)
    return made.getvalue()


class SettingsTarget:
    """Load the bytes as a settings file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "settings.toml"
        self.keys = list(_keys(Settings, ()))

    def __call__(self, data: bytes) -> None:
        choices = Choices(data)
        self.path.write_bytes(choices.rest() if choices.below(4) == 0 else self._made(choices))
        settings = load_settings(self.path)
        check_settings(settings)
        _ = settings.resolved_database_url, settings.resolved_tensors, settings.learning.recipe().id

    def _made(self, choices: Choices) -> bytes:
        """Some keys of ours, some made up, with values that do not fit; then perhaps some bytes changed."""
        lines = []
        for _ in range(1 + choices.below(6)):
            key = ".".join(choices.one(self.keys)) + choices.one(("", "", "", "x", ".y", "z" * 3000))
            lines.append(f"{key} = {_toml(choices)}")
        data = "\n".join(lines).encode("utf-8", "surrogatepass")
        return edit_bytes(data, choices) if choices.below(4) == 0 else data


def _keys(section: type[BaseModel], above: tuple[str, ...]) -> Any:
    for name, field in section.model_fields.items():
        yield (*above, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, (*above, name))


_WORDS = ("thread", "ray", "exact", "pgvector", "chroma+http://[::1", "qdrant+http://x:y", "s3://", "file:///", "prm")


def _toml(choices: Choices) -> str:
    match choices.below(5):
        case 0:
            return json.dumps(choices.one(_WORDS))
        case 1:
            return json.dumps(choices.take(choices.below(16)).decode("latin-1"))
        case 2:
            return choices.one(("1e400", "nan", "-inf", "1979-05-27T07:32:00Z", "07:32:00", "0x7f", "[1, 'a', {}]"))
        case _:
            value = choices.one([value for value in NASTY if value is not None])
            return json.dumps(value).replace(":", " =")


class SafetensorsTarget:
    """Read the bytes as the tensors of a memory, of each kind that a bank keeps."""

    def __init__(self, folder: Path) -> None:  # noqa: ARG002 - all targets are made alike
        low = {
            f"{name}.{half}": torch.ones((1, 2, 16) if half == "A" else (1, 16, 2))
            for name in PROJECTIONS[1]
            for half in "AB"
        }
        self.memories: list[Kept] = [
            SoftPrompt(torch.arange(32, dtype=torch.float32).reshape(2, 16)),
            KeyValues(torch.ones(1, 2, 2, 4), torch.ones(1, 2, 2, 4)),
            LowRank(low, 1.0),
        ]

    def __call__(self, data: bytes) -> None:
        choices = Choices(data)
        memory = choices.one(self.memories)
        base = to_bytes(memory)
        match choices.below(4):
            case 0:
                made = choices.rest()
            case 1:
                made = edit_bytes(base, choices)
            case _:
                made = _edit_header(base, choices)
        recipe = Recipe(parameterisation=memory.parameterisation, virtual_tokens=2, lora_rank=2)
        found = from_bytes(made, recipe=recipe, virtual_tokens=recipe.positions, width=16)
        assert set(found.tensors) == set(memory.tensors)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in found.tensors.values())
        assert (found.virtual_tokens, found.width) == (memory.virtual_tokens, memory.width)


TARGETS: dict[str, Callable[[Path], Callable[[bytes], None]]] = {
    "pack": PackTarget,
    "settings": SettingsTarget,
    "safetensors": SafetensorsTarget,
}


def attempt(target: Callable[[bytes], None], data: bytes) -> bool:
    """Whether the input was accepted; False when it was refused in one sentence. Anything else is raised."""
    try:
        target(data)
    except ElmError as error:
        message = str(error)
        assert message, "an error without a word"
        assert len(message) <= LONGEST, f"an error of {len(message)} characters"
        assert "Traceback" not in message
        return False
    return True
