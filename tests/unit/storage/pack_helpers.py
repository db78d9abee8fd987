"""A small pack made without a bank, and one that is taken apart and put together again after somebody altered it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from elm_agent.records import MemoryState, Recipe, question_digest, utcnow
from elm_agent.storage.packs.lines import (
    EpisodeLine,
    KeysLine,
    Manifest,
    MemoryLine,
    RecipeLine,
    RolloutLine,
    StepLine,
    digest_of_bytes,
    encode_key,
    pack_id_of,
    tensor_name,
)
from elm_agent.storage.packs.writing import write_pack
from elm_agent.testing.doubles import fake_fingerprint, unit_vector

MODEL = fake_fingerprint()
ROWS = 2
NAMES = ("manifest.json", "memories.jsonl", "tensors.safetensors", "signature.json")
Parts = dict[str, bytes]


def line_of(place: int, *, episodes: bool = True) -> MemoryLine:
    question, now = f"What is {place} times 8? שלום", utcnow()
    step = StepLine(
        step=0,
        majority_answer="56",
        vote_share=0.75,
        reward_mean=0.75,
        loss=-0.1,
        kl=0.0,
        grad_norm=1.5,
        clip_fraction=0.0,
        tokens=16,
        finished_share=1.0,
        seconds_rollout=0.5,
        seconds_update=0.25,
    )
    rollout = RolloutLine(
        step=0,
        index=0,
        seed=2**63 - 1,
        text="It is 56\x00",
        answer="56",
        reward=1.0,
        tokens=4,
        finished=True,
        failure=None,
    )
    episode = EpisodeLine(
        id=f"ep_{place}",
        majority_answer="56",
        curve=(step,),
        rollouts=(rollout,),
        seed=7,
        seconds=0.5,
        created_at=now,
    )
    keys = [encode_key(unit_vector(question, width)) for width in (MODEL.width, 2 * MODEL.width)]
    return MemoryLine(
        id=f"mem_{place}",
        question=question if episodes else None,
        question_digest=question_digest(question),
        task="math",
        state=MemoryState.ACTIVE,
        origin="local",
        created_at=now,
        valid_until=None,
        virtual_tokens=ROWS,
        width=MODEL.width,
        recipe=RecipeLine(**asdict(Recipe(virtual_tokens=ROWS))),
        library_version="0.1.0",
        format_version=1,
        final_vote_share=0.75,
        keys=KeysLine(input=keys[0], kv=keys[1]),
        episode=episode if episodes else None,
        tensor=tensor_name(place),
    )


def numbers_of(memory_id: str) -> bytes:
    seed = int(memory_id.removeprefix("mem_"))
    return np.random.default_rng(seed).standard_normal((ROWS, MODEL.width)).astype("<f4").tobytes()


def make_pack(path: Path, count: int = 3, *, episodes: bool = True, **more: Any) -> Manifest:
    lines = (line_of(place, episodes=episodes) for place in range(count))
    return write_pack(path, lines, numbers_of, model=MODEL, namespace="default", episodes=episodes, **more)


def parts_of(path: Path) -> Parts:
    with zipfile.ZipFile(path) as pack:
        return {name: pack.read(name) for name in pack.namelist()}


def put_together(path: Path, parts: Parts) -> Path:
    """The parts as a ZIP, whatever they are called and hold."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as pack:
        for name, data in parts.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            pack.writestr(info, data)
    return path


def honest(parts: Parts) -> Parts:
    """The parts with a manifest whose every digest and size is right: what an able forger would write."""
    manifest = json.loads(parts["manifest.json"])
    header = 8 + int.from_bytes(parts["tensors.safetensors"][:8], "little")
    entries = json.loads(parts["tensors.safetensors"][8:header])
    offsets = [entry["data_offsets"] for entry in entries.values()]
    tensors = [parts["tensors.safetensors"][header + start : header + end] for start, end in offsets]
    lines = parts["memories.jsonl"].split(b"\n")[:-1]
    manifest["memories"] = [
        {"line": digest_of_bytes(line), "tensor": digest_of_bytes(tensor)}
        for line, tensor in zip(lines, tensors, strict=False)
    ]
    named = {"memories": "memories.jsonl", "tensors": "tensors.safetensors"}
    manifest["parts"] = {
        part: {"sha256": digest_of_bytes(parts[name]), "bytes": len(parts[name])} for part, name in named.items()
    }
    made = Manifest.model_validate_json(json.dumps(manifest))
    manifest["pack_id"] = pack_id_of(
        model=made.model.fingerprint(), namespace=manifest["namespace"], parts=made.parts
    )
    return parts | {"manifest.json": json.dumps(manifest).encode()}


def altered_line(parts: Parts, change: Callable[[dict[str, Any]], object], place: int = 0) -> Parts:
    """The parts after ``change`` of one memory's line, with an honest manifest."""
    lines = parts["memories.jsonl"].split(b"\n")
    value = json.loads(lines[place])
    change(value)
    lines[place] = json.dumps(value).encode()
    return honest(parts | {"memories.jsonl": b"\n".join(lines)})
