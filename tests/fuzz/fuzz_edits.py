"""Bytes as instructions: what a fuzzer mutates becomes choices, and choices become edits of something valid.

So a coverage-guided fuzzer, hypothesis and a plain random generator drive the same edits.
"""

from __future__ import annotations

import json
import struct
from typing import Any

NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "a",
    "../../etc/passwd",
    "/etc/passwd",
    "a\x00b",
    "\u202eevil",
    "\ud800",
    "x" * 10_000,
    "sha256:" + "0" * 64,
    "2026-01-01T00:00:00Z",
    "9999-12-31T23:59:59-14:00",
    "https://[",
    "sqlite:///",
    [],
    {},
    [[[[[[[[]]]]]]]],
    {"a": {"b": {"c": {}}}},
    [0] * 100,
)


class Choices:
    """Bytes that are used up choice by choice; 0 when there are none left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def below(self, limit: int) -> int:
        """An int in [0, limit)."""
        size = 1 if limit <= 256 else 4
        return int.from_bytes(self.take(size), "little") % max(1, limit)

    def one(self, options: Any) -> Any:
        return options[self.below(len(options))]

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def rest(self) -> bytes:
        return self._data[self._at :]


def edit_bytes(data: bytes, choices: Choices) -> bytes:
    """Overwrite, insert, cut out, double or cut off."""
    at = choices.below(len(data) + 1)
    match choices.below(6):
        case 0:
            new = choices.take(1 + choices.below(8))
            return data[:at] + new + data[at + len(new) :]
        case 1:
            return data[:at] + choices.take(choices.below(32)) + data[at:]
        case 2:
            return data[:at] + data[at + choices.below(64) :]
        case 3:
            return data[:at] + data[at : at + choices.below(256)] + data[at:]
        case 4:
            return data[:at]
        case _:
            number = choices.one((0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
            return data[:at] + struct.pack("<L", number) + data[at + 4 :]


def edit_json(data: bytes, choices: Choices) -> bytes:
    """Replace, remove, add or double one value in a JSON document; bytes that are none are edited as such."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return edit_bytes(data, choices)
    places = list(_places(value))
    if not places:
        return edit_bytes(data, choices)
    holder, name = places[choices.below(len(places))]
    match choices.below(6):
        case 0 | 1 | 2:
            holder[name] = choices.one(NASTY)
        case 3:
            del holder[name]
        case 4:
            if isinstance(holder, dict):
                holder[choices.one(("id", "extra", "__class__", "a\x00", ""))] = choices.one(NASTY)
            else:
                holder.append(choices.one(NASTY))
        case _:
            holder[name] = [holder[name]]
    return json.dumps(value).encode("utf-8")


def _places(value: Any) -> Any:
    """Every (holder, key or index) below ``value``."""
    names = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for name in list(names):
        yield value, name
        yield from _places(value[name])
