"""The form of a pack: what is written is read again, and whatever else there could be is refused in one sentence."""

import io
import json
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pack_helpers import (
    MODEL,
    NAMES,
    ROWS,
    Parts,
    altered_line,
    honest,
    line_of,
    make_pack,
    numbers_of,
    parts_of,
    put_together,
)
from safetensors.torch import load

from elm_agent.errors import InputError
from elm_agent.records import Recipe, Rollout, StepRecord
from elm_agent.storage.packs import lines as packlines
from elm_agent.storage.packs.container import Limits
from elm_agent.storage.packs.lines import MAX_DEPTH, RecipeLine, RolloutLine, StepLine, encode_key
from elm_agent.storage.packs.reading import PackReader
from elm_agent.storage.packs.writing import write_pack


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    path = tmp_path / "a.elmpack"
    make_pack(path)
    return path


@pytest.fixture
def parts(pack: Path) -> Parts:
    return parts_of(pack)


def read(path: Path, **limits: int) -> list[str]:
    with PackReader(path, limits=Limits(**limits)) as reader:
        reader.check()
        return [memory.line.id for memory in reader.memories()]


def refused(path: Path, words: str, **limits: int) -> None:
    with pytest.raises(InputError) as caught:
        read(path, **limits)
    message = str(caught.value)
    assert words in message, message
    assert "\n" not in message
    assert len(message) < 800, "a pack must not choose how much it says"


def rebuilt(pack: Path, parts: Parts) -> Path:
    return put_together(pack.with_name("b.elmpack"), parts)


# --- what is written is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("episodes", [True, False])
def test_what_is_written_is_read_again(tmp_path: Path, episodes: bool) -> None:
    path = tmp_path / "a.elmpack"
    manifest = make_pack(path, 5, episodes=episodes)
    with PackReader(path) as reader:
        found = list(reader.memories())
        assert reader.manifest == manifest
        assert reader.model == MODEL
    for place, memory in enumerate(found):
        expected = line_of(place, episodes=episodes)
        assert memory.line.question == (f"What is {place} times 8? שלום" if episodes else None)
        assert memory.line.recipe == expected.recipe
        assert memory.prompt.prompt_VE.numpy().astype("<f4").tobytes() == numbers_of(f"mem_{place}")
        assert encode_key(memory.keys.input) == expected.keys.input
    assert os.listdir(tmp_path) == ["a.elmpack"]


def test_the_tensors_are_a_file_that_the_library_reads(parts: Parts) -> None:
    tensors = load(parts["tensors.safetensors"])
    assert sorted(tensors) == ["000000", "000001", "000002"]
    expected = np.frombuffer(numbers_of("mem_1"), "<f4").reshape(ROWS, MODEL.width)
    assert torch.equal(tensors["000001"], torch.from_numpy(expected.copy()))


def test_equal_content_has_an_equal_id(tmp_path: Path) -> None:
    lines = [line_of(0)]
    made = [
        write_pack(tmp_path / name, lines, numbers_of, model=MODEL, namespace=namespace, episodes=True).pack_id
        for name, namespace in (("a", "default"), ("b", "default"), ("c", "other"))
    ]
    assert made[0] == made[1] != made[2]


def test_lines_carry_every_field_of_the_records() -> None:
    for line, record in ((RecipeLine, Recipe), (StepLine, StepRecord), (RolloutLine, Rollout)):
        assert set(line.model_fields) == {field.name for field in fields(record)}


def test_the_packs_own_rebuilt_form_is_read(pack: Path, parts: Parts) -> None:
    assert read(rebuilt(pack, honest(parts))) == ["mem_0", "mem_1", "mem_2"]


# --- writing ------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_only_by_force(pack: Path) -> None:
    before = pack.read_bytes()
    with pytest.raises(InputError, match="--force"):
        make_pack(pack, 1)
    assert pack.read_bytes() == before
    make_pack(pack, 1, force=True)
    assert read(pack) == ["mem_0"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError("no")])
def test_an_interrupted_export_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def interrupted(_memory_id: str) -> bytes:
        assert len(os.listdir(tmp_path)) == 1, "the temporary file"
        raise error

    with pytest.raises(type(error) if isinstance(error, BaseException) else error):
        write_pack(tmp_path / "a", [line_of(0)], interrupted, model=MODEL, namespace="default", episodes=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such/a.elmpack", "its folder is not there"),
        (".", "no plain file"),
        ("a\0b", "NUL"),
        ("a" * 10_000, "could not be written"),
    ],
)
def test_where_no_file_can_be(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises((InputError, OSError), match=words):
        make_pack(tmp_path / name)
    assert os.listdir(tmp_path) == []


# --- the container ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/passwd",
        "a/../../b",
        "manifest.json/",
        "MANIFEST.JSON",
        "x.zip",
        "",
        "a" * 64,
    ],
)
def test_other_names_are_refused(pack: Path, parts: Parts, name: str) -> None:
    refused(rebuilt(pack, parts | {name: b"{}"}), "expected")


def test_a_name_with_nul_is_another_name(pack: Path) -> None:
    pack.write_bytes(pack.read_bytes().replace(b"manifest.json", b"manifest\0json"))
    refused(pack, "expected only the parts")


def test_a_part_that_is_missing(pack: Path, parts: Parts) -> None:
    for name in NAMES[:3]:
        left = {key: data for key, data in parts.items() if key != name} | {"signature.json": b"{}"}
        refused(rebuilt(pack, left), f"{name} is not in it")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_part_that_stands_twice(pack: Path, parts: Parts) -> None:
    path = rebuilt(pack, parts)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(zipfile.ZipInfo("manifest.json"), b"{}")
    refused(path, "twice")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR])
def test_links_folders_and_devices(pack: Path, parts: Parts, kind: int) -> None:
    path = pack.with_name("b.elmpack")
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = ((kind if name == "manifest.json" else stat.S_IFREG) | 0o777) << 16
            file.writestr(info, data)
    refused(path, "expected a plain file")


@pytest.mark.parametrize("bit", [0, 3, 5, 6, 13])
def test_flags_that_change_what_the_bytes_mean(pack: Path, bit: int) -> None:
    data = bytearray(pack.read_bytes())
    at = data.index(b"PK\x01\x02") + 8
    data[at : at + 2] = struct.pack("<H", 1 << bit)
    pack.write_bytes(data)
    refused(pack, "encrypted or carries more")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_of_packing(pack: Path, parts: Parts, method: int) -> None:
    path = pack.with_name("b.elmpack")
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in parts.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method if name == "memories.jsonl" else zipfile.ZIP_STORED
            file.writestr(info, data)
    refused(path, "expected")


@pytest.mark.parametrize("where", [0, 10, -30, -22, -5])
def test_bytes_that_do_not_belong(pack: Path, where: int) -> None:
    data = pack.read_bytes()
    at = where % len(data)
    pack.write_bytes(data[:at] + b"#!/bin/sh\n" + data[at:])
    refused(pack, "cannot be read")


def test_hidden_bytes_that_the_directory_allows_for(pack: Path) -> None:
    data = pack.read_bytes()
    start = struct.unpack_from("<L", data, len(data) - 6)[0]
    moved = struct.pack("<L", start + 10)
    pack.write_bytes(data[:start] + b"#!/bin/sh\n" + data[start:-6] + moved + data[-2:])
    with zipfile.ZipFile(pack) as file:
        assert file.testzip() is None, "a ZIP program sees nothing wrong"
    refused(pack, "between its parts and its directory")


def test_a_comment_or_something_after_it(pack: Path) -> None:
    with zipfile.ZipFile(pack, "a") as file:
        file.comment = b"hello"
    refused(pack, "ends with its directory")


def test_every_truncation_and_every_flipped_byte_is_found(pack: Path) -> None:
    data = pack.read_bytes()
    for length in range(0, len(data), 29):
        pack.write_bytes(data[:length])
        refused(pack, "")
    harmless = 0
    for place in range(0, len(data), 7):
        pack.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            harmless += read(pack) == ["mem_0", "mem_1", "mem_2"]
        except InputError:
            continue
    assert harmless < 20, "only a date or a version that nobody reads"


def test_a_bomb_is_refused_by_what_it_says_and_by_what_it_is(pack: Path, parts: Parts) -> None:
    path = rebuilt(pack, parts | {"memories.jsonl": b"0" * 1_000_000})
    refused(path, "as bombs do", small=1000)
    refused(path, "expected at most 1000", part=1000)
    path = rebuilt(pack, parts)
    refused(path, "a line is longer than 100 bytes", line=100)
    refused(path, "manifest.json has", manifest=100)
    refused(path, "expected at most 500", pack=500)
    data = bytearray(path.read_bytes())  # a size that lies: more comes out than is said
    at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    size = struct.unpack_from("<L", data, at + 24)[0]
    struct.pack_into("<L", data, at + 24, size - 1)
    path.write_bytes(data)
    refused(path, "")


def test_a_nested_archive_is_no_part(pack: Path, parts: Parts) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as inner:  # compressed parts have brackets by chance: too deep, not no JSON
        inner.writestr(zipfile.ZipInfo("manifest.json"), b"plain")
    refused(rebuilt(pack, parts | {"manifest.json": packed.getvalue()}), "not JSON")
    refused(rebuilt(pack, parts | {"manifest.json": pack.read_bytes()}), "manifest.json cannot be read")
    refused(rebuilt(pack, parts | {"inner.elmpack": pack.read_bytes()}), "expected only the parts")


def test_no_file_no_pack(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_bytes(b"")
    for name, words in {
        "nothing": "not there",
        "pipe": "no plain file",
        ".": "no plain file",
        "empty": "too few",
        "a\0b": "NUL",
        "a\ud800b": "half a character",
        "x" * 10_000: "cannot be read",
    }.items():
        refused(tmp_path / name, words)


# --- the content --------------------------------------------------------------------------------------------

Line = dict[str, Any]
BAD_LINES: dict[str, tuple[Callable[[Line], object], str]] = {
    "an unknown key": (lambda line: line.update(command="rm"), "Extra inputs"),
    "a missing key": (lambda line: line.pop("task"), "'task'"),
    "another type": (lambda line: line.update(virtual_tokens="2"), "valid integer"),
    "a truth for a number": (lambda line: line.update(virtual_tokens=True), "valid integer"),
    "a number out of range": (lambda line: line["episode"].update(seed=2**63), "less than"),
    "a huge number": (lambda line: line["episode"].update(seed=10**400), ""),
    "a negative share": (lambda line: line.update(final_vote_share=-0.1), "greater than"),
    "NaN": (lambda line: line.update(final_vote_share=float("nan")), "NaN"),
    "infinity": (lambda line: line["episode"].update(seconds=float("inf")), "Infinity"),
    "an id that is a path": (lambda line: line.update(id="../../x"), "'id'"),
    "an id of 10,000 characters": (lambda line: line.update(id="m" * 10_000), "'id'"),
    "a task with an escape": (lambda line: line.update(task="\x1b[2J"), "'task'"),
    "an unknown state": (lambda line: line.update(state="trusted"), "'state'"),
    "a time without a zone": (lambda line: line.update(created_at="2026-01-01T00:00:00"), "timezone"),
    "a time before time": (lambda line: line.update(created_at="0001-01-01T00:00:00+14:00"), "'created_at'"),
    "another question": (lambda line: line.update(question="other"), "digest of its question"),
    "half a character": (lambda line: line.update(question="\ud800"), ""),
    "no episode": (lambda line: line.update(episode=None), "in every line"),
    "another tensor": (lambda line: line.update(tensor="000001"), "speaks of tensor"),
    "another shape": (lambda line: line.update(virtual_tokens=1), "speaks of tensor"),
    "another width": (lambda line: line.update(width=8), "speaks of tensor"),
    "a key that is no base64": (lambda line: line["keys"].update(input="%%%%"), "base64"),
    "a key of letters": (lambda line: line["keys"].update(input="é"), "base64"),
    "a key of three bytes": (lambda line: line["keys"].update(input="AAAA"), "3 bytes"),
    "a key without length": (lambda line: line["keys"].update(input=encode_key(np.zeros(16, "f4"))), "length 0"),
    "a key of NaN": (lambda line: line["keys"].update(kv=encode_key(np.full(4, np.nan, "f4"))), "length nan"),
    "a key of another width": (lambda line: line["keys"].update(input=encode_key(np.ones(1, "f4"))), "width 1"),
    "kv keys of two widths": (lambda line: line["keys"].update(kv=None), "different widths"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_forged_line_is_refused_however_honest_its_manifest(pack: Path, parts: Parts, name: str) -> None:
    change, words = BAD_LINES[name]
    refused(rebuilt(pack, altered_line(parts, change)), words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"id": "a", "id": "b"}', "twice"),
        (b"[" * 100_000, "deep"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "deep"),
        (b'{"a":' * 1000 + b"1" + b"}" * 1000, "deep"),
        (b'{"a": "' + b"[" * 100 + b'"}', "'id'"),
        (b'"' + b'\\"[' * 100, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"", "not JSON"),
        (b"1" * 5000, "not JSON"),
        (b"__import__('os')", "not JSON"),
    ],
)
def test_lines_that_are_no_memories(pack: Path, parts: Parts, line: bytes, words: str) -> None:
    lines = parts["memories.jsonl"].split(b"\n")
    forged = honest(parts | {"memories.jsonl": b"\n".join([line, *lines[1:]])})
    refused(rebuilt(pack, forged), words)


def test_more_and_fewer_lines_than_the_manifest_says(pack: Path, parts: Parts) -> None:
    lines = parts["memories.jsonl"].split(b"\n")
    for data in (b"\n".join([*lines[:-1], lines[0], b""]), b"\n".join([*lines[:2], b""]), b"\n".join(lines[:-1])):
        refused(rebuilt(pack, parts | {"memories.jsonl": data}), "bytes, the manifest says")
        longer = honest(parts | {"memories.jsonl": data})
        manifest = json.loads(longer["manifest.json"])
        manifest["memories"] = json.loads(parts["manifest.json"])["memories"]
        refused(rebuilt(pack, longer | {"manifest.json": json.dumps(manifest).encode()}), "")


def header_of(parts: Parts) -> tuple[dict[str, Any], bytes]:
    data = parts["tensors.safetensors"]
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def with_header(parts: Parts, header: object, data: bytes) -> Parts:
    text = json.dumps(header).encode()
    tensors = len(text).to_bytes(8, "little") + text + data
    manifest = json.loads(parts["manifest.json"])
    manifest["parts"]["tensors"] = {"sha256": packlines.digest_of_bytes(tensors), "bytes": len(tensors)}
    made = packlines.Manifest.model_validate_json(json.dumps(manifest))
    manifest["pack_id"] = packlines.pack_id_of(model=MODEL, namespace="default", parts=made.parts)
    return parts | {"tensors.safetensors": tensors, "manifest.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda header: header["000000"].update(dtype="F16"), "float32"),
        (lambda header: header["000000"].update(shape=[2, 16, 1]), "float32"),
        (lambda header: header["000000"].update(shape=[-2, -16]), "lies at"),
        (lambda header: header["000000"].update(shape=[2**40, 2**40]), "lies at"),
        (lambda header: header["000001"].update(data_offsets=[0, 128]), "lies at"),
        (lambda header: header["000001"].update(data_offsets=[10**30, 10**31]), ""),
        (lambda header: header.update(__metadata__={"a": "b"}), ""),
        (lambda header: header.pop("000002"), "holds 2 tensors"),
        (lambda header: header.update(extra=dict(header["000000"])), "holds 4 tensors"),
    ],
)
def test_a_forged_header_of_the_tensors(
    pack: Path, parts: Parts, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    header, data = header_of(parts)
    change(header)
    refused(rebuilt(pack, with_header(parts, header, data)), words)


@pytest.mark.parametrize("length", [2**63, 2**40, 10**6, 0])
def test_a_header_with_another_length(pack: Path, parts: Parts, length: int) -> None:
    tensors = length.to_bytes(8, "little") + parts["tensors.safetensors"][8:]
    forged = with_header(parts, *header_of(parts)) | {"tensors.safetensors": tensors}
    refused(rebuilt(pack, forged), "")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(pack: Path, parts: Parts, number: float) -> None:
    data = bytearray(parts["tensors.safetensors"])
    data[-4:] = struct.pack("<f", number)
    refused(rebuilt(pack, honest(parts | {"tensors.safetensors": bytes(data)})), "finite")


def test_a_newer_format_and_another_file_say_so(pack: Path, parts: Parts) -> None:
    manifest = json.loads(parts["manifest.json"])
    newer = parts | {"manifest.json": json.dumps(manifest | {"format_version": 2}).encode()}
    with pytest.raises(InputError, match="got format 2, this library reads 1"):
        read(rebuilt(pack, newer))
    other = parts | {"manifest.json": json.dumps(manifest | {"format": "other"}).encode()}
    refused(rebuilt(pack, other), "'format'")
    moved = parts | {"manifest.json": json.dumps(manifest | {"namespace": "../x"}).encode()}
    refused(rebuilt(pack, moved), "'namespace'")
    renamed = parts | {"manifest.json": json.dumps(manifest | {"namespace": "other"}).encode()}
    refused(rebuilt(pack, renamed), "its id is")


def test_a_file_that_changes_between_the_passes_is_refused(tmp_path: Path) -> None:
    pack = tmp_path / "a.elmpack"
    make_pack(pack, 100)  # more than a buffer
    forged = rebuilt(pack, altered_line(parts_of(pack), lambda line: line.update(task="text"), place=50))
    with PackReader(pack) as reader:
        reader.check()
        with open(pack, "r+b") as file:
            file.write(forged.read_bytes())
        with pytest.raises(InputError):
            list(reader.memories())
