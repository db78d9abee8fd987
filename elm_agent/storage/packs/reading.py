"""Reading a pack: everything is checked as it streams by, in one pass that keeps nothing and writes nothing.

``check`` reads the whole pack. ``memories`` reads it again, with the same checks and against the same manifest, so
that a file that changes in between cannot pass either. Knows nothing of banks; ``packwrite`` makes the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from elm_agent.errors import InputError, TensorCorrupt
from elm_agent.records import MemoryKeys, ModelFingerprint, question_digest
from elm_agent.storage.packs.container import MANIFEST, MEMORIES, SIGNATURE, TENSORS, Limits, PackZip, Part
from elm_agent.storage.packs.lines import (
    PACK_VERSION,
    ItemLine,
    Manifest,
    MemoryLine,
    PartLine,
    SignatureLine,
    check_json,
    decode_key,
    digest_of_bytes,
    pack_id_of,
    parse,
    refuse,
    tensor_name,
)

if TYPE_CHECKING:
    from elm_agent.adapters import Kept

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each of a memory's tensors by name, in order."""

Progress = Callable[[int, int], None]
"""``progress(memories_done, memories_in_all)``."""


@dataclass(frozen=True, slots=True)
class PackedMemory:
    """One memory of a pack, checked."""

    line: MemoryLine
    keys: MemoryKeys = field(repr=False)
    prompt: Kept = field(repr=False)


class PackReader:
    """An open pack. A context manager. Opening checks container, manifest and signature's form, not the memories.

    Raises:
        InputError: it is no pack, or not a whole one; in one sentence.
    """

    manifest: Manifest
    manifest_bytes: bytes
    signature: SignatureLine | None

    def __init__(self, path: Path, *, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._zip = PackZip(path, self.limits)
        try:
            self._read_head()
        except BaseException:
            self._zip.__exit__(None, None, None)
            raise

    def __enter__(self) -> PackReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.__exit__(kind, error, trace)

    @property
    def model(self) -> ModelFingerprint:
        """What the memories were made for."""
        return self.manifest.model.fingerprint()

    def check(self, progress: Progress | None = None) -> None:
        """Read everything once. Raises ``InputError`` for the first thing that is wrong."""
        total = len(self.manifest.memories)
        for done, _ in enumerate(self.memories(), start=1):
            if progress:
                progress(done, total)

    def memories(self) -> Iterator[PackedMemory]:
        """Every memory, in the pack's order; the sums of the parts are checked at the end."""
        with self._zip.part(MEMORIES) as lines, self._zip.part(TENSORS) as tensors:
            shapes = self._shapes(tensors)
            widths: set[int | None] = set()
            for place, item in enumerate(self.manifest.memories):
                memory = self._memory(place, item, lines, tensors, shapes[place])
                widths.add(None if memory.keys.kv is None else len(memory.keys.kv))
                if len(widths) > 1:
                    refuse(lines.what, "its kv keys have different widths, expected one for all memories, or none")
                yield memory
            _agree(lines, self.manifest.parts.memories)
            _agree(tensors, self.manifest.parts.tensors)

    def _read_head(self) -> None:
        self.manifest_bytes = self._zip.read(MANIFEST, self.limits.manifest)
        what = f"{self._zip.what}, {MANIFEST}"
        self._check_version(what)
        self.manifest = parse(Manifest, self.manifest_bytes, what)
        parts = self.manifest.parts
        for name, part in ((MEMORIES, parts.memories), (TENSORS, parts.tensors)):
            if part.bytes != self._zip.size(name):
                refuse(what, f"{name} has {self._zip.size(name)} bytes, the manifest says {part.bytes}")
        expected = pack_id_of(model=self.model, namespace=self.manifest.namespace, parts=parts)
        if self.manifest.pack_id != expected:
            refuse(what, f"its id is {self.manifest.pack_id[:19]}…, its content has {expected[:19]}…")
        self.signature = None
        if SIGNATURE in self._zip.infos:
            data = self._zip.read(SIGNATURE, self.limits.signature)
            self.signature = parse(SignatureLine, data, f"{self._zip.what}, {SIGNATURE}")

    def _check_version(self, what: str) -> None:
        """A newer format is no damage: it says so in words of its own."""
        value = check_json(self.manifest_bytes, what)
        version = value.get("format_version") if isinstance(value, dict) else None
        if isinstance(version, int) and version > PACK_VERSION:
            raise InputError(
                f"{what}: got format {str(version)[:20]}, this library reads {PACK_VERSION}: "
                "`pip install --upgrade elm-agent`"
            )

    def _shapes(self, tensors: Part) -> list[Shapes]:
        """Shapes of every memory, from the safetensors header: ours in order, float32, without gap or overlap."""
        what, count = tensors.what, len(self.manifest.memories)
        length = int.from_bytes(tensors.read(8), "little")
        if length > min(self.limits.manifest, self.manifest.parts.tensors.bytes):
            refuse(what, f"its header has {length} bytes, expected at most {self.limits.manifest}")
        header = tensors.read(length)
        check_json(header, what)
        try:
            entries = _HEADER.validate_json(header)
        except ValidationError as error:
            refuse(what, f"its header does not describe float32 tensors of shape (V, E): {error.errors()[0]['msg']}")
        shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, entry in entries.items():
            place, _, own = name.partition(".")
            shapes.setdefault(place, {})[own or "prompt"] = entry.shape
            if not own and len(entry.shape) != 2:
                refuse(what, f"tensor {name} of shape {entry.shape} is not float32 of shape (V, E)")
        named = [tensor_name(place, own) for place, of in enumerate(shapes.values()) for own in sorted(of)]
        if len(shapes) != count or list(entries) != named:
            refuse(what, f"it holds {len(entries)} tensors, expected {count}, named 000000 and so on, in order")
        at = 0
        for name, entry in entries.items():
            if not all(size > 0 for size in entry.shape) or entry.data_offsets != (at, at + 4 * prod(entry.shape)):
                refuse(
                    what, f"tensor {name} of shape {entry.shape} lies at {entry.data_offsets}, expected from {at} on"
                )
            at = entry.data_offsets[1]
        return list(shapes.values())

    def _memory(self, place: int, item: ItemLine, lines: Part, tensors: Part, shapes: Shapes) -> PackedMemory:
        data, what = lines.line(self.limits.line), f"{lines.what}, line {place + 1}"
        if digest_of_bytes(data) != item.line:
            refuse(what, "its digest is not the one in the manifest")
        line = parse(MemoryLine, data, what)
        self._check_line(line, place, shapes, what)
        numbers = tensors.read(4 * sum(map(prod, shapes.values())))
        if digest_of_bytes(numbers) != item.tensor:
            refuse(what, "its tensor's digest is not the one in the manifest")
        return PackedMemory(line, self._keys(line, what), _kept(numbers, shapes, line, what))

    def _keys(self, line: MemoryLine, what: str) -> MemoryKeys:
        keys = MemoryKeys(
            input=decode_key(line.keys.input, what),
            kv=None if line.keys.kv is None else decode_key(line.keys.kv, what),
        )
        if len(keys.input) != self.manifest.model.width:
            refuse(what, f"its input key has width {len(keys.input)}, expected {self.manifest.model.width}")
        return keys

    def _check_line(self, line: MemoryLine, place: int, shapes: Shapes, what: str) -> None:
        """What the parts of a memory say of each other and of the pack."""
        width, episodes = self.manifest.model.width, self.manifest.episodes
        shape = shapes.get("prompt", (line.virtual_tokens, line.width))  # others are held against the recipe
        if line.tensor != tensor_name(place) or (line.virtual_tokens, line.width) != shape or line.width != width:
            refuse(
                what,
                f"it speaks of tensor {line.tensor} of shape {(line.virtual_tokens, line.width)}, the pack has "
                f"{tensor_name(place)} of shape {shape} there, for a model of width {width}",
            )
        if (line.question is not None, line.episode is not None) != (episodes, episodes):
            refuse(what, f"question and episode are expected {'in every line' if episodes else 'in no line'}")
        if line.question is not None and question_digest(line.question) != line.question_digest:
            refuse(what, "the digest of its question is another one")


class _Tensor(BaseModel):
    """One entry of a safetensors header."""

    model_config = ConfigDict(extra="forbid", strict=True)

    dtype: Literal["F32"]
    shape: tuple[int, ...] = Field(min_length=2, max_length=4)
    data_offsets: tuple[int, int]


_HEADER = TypeAdapter(dict[str, _Tensor])


def _kept(numbers: bytes, shapes: Shapes, line: MemoryLine, what: str) -> Kept:
    """From little-endian float32, row by row; NaN and infinity are refused, and what the recipe does not make."""
    import torch  # enters late: looking at a manifest needs none

    from elm_agent.adapters import from_tensors

    ends = list(accumulate(map(prod, shapes.values())))
    parts = torch.from_numpy(np.frombuffer(numbers, dtype="<f4").astype(np.float32)).tensor_split(ends[:-1])
    tensors = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    try:
        return from_tensors(
            tensors, recipe=line.recipe.recipe(), virtual_tokens=line.virtual_tokens, width=line.width
        )
    except TensorCorrupt as error:
        refuse(what, str(error))


def _agree(part: Part, stated: PartLine) -> None:
    if part.finish() != stated.sha256 or part.bytes != stated.bytes:
        refuse(part.what, "its digest is not the one in the manifest")
