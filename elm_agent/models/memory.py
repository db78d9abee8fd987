"""How much memory there is and how much a row in flight takes: asked before rows are taken on."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from elm_agent.models.sparing import without_gates

if TYPE_CHECKING:
    from elm_agent.models.network import Prefix


def spare_bytes(device: torch.device) -> int | None:
    """Bytes that new tensors on ``device`` may take; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    return min(
        [*_spare_of_host(), *_spare_of_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))], default=None
    )


def _spare_of_host() -> Iterator[int]:
    try:
        with open("/proc/meminfo") as lines:
            yield next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        if "SC_AVPHYS_PAGES" in names:
            yield os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _spare_of_groups(groups: Path, root: Path) -> Iterator[int]:
    """What Linux leaves to this process's control group and to each that it lies in; a container is one.

    ``groups`` names them, one a hierarchy; in version 1 memory has its own below ``root``, in version 2 there is one.
    """
    try:
        hierarchies = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in hierarchies:
        if controllers == "":
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container its own group may be mounted at the top, while the path is the one outside.
        below = path.strip("/").split("/")
        for depth in range(len(below) + 1):
            yield from _spare_of(top.joinpath(*below[:depth]), *names)


def _spare_of(group: Path, limit: str, used: str, cache: str) -> Iterator[int]:
    """Nothing where there is no limit ("max") or no such group. Pages of files that nobody reads count as free."""
    try:
        most, now = int((group / limit).read_text()), int((group / used).read_text())
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return
    yield max(0, most - now + int(counts.get(cache, 0)))


def out_of_memory(error: RuntimeError) -> bool:
    """Whether this is torch's way of saying that memory has run out; on a CPU it has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def give_back() -> None:
    """Let the system have memory that was freed and is kept for later, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def row_bytes(prefix: Prefix, positions: int) -> int:
    """Bytes of the keys and values of one row of ``positions`` after ``prefix``."""
    per_position = sum(
        states.shape[1] * states.shape[3] * states.element_size() for layer in prefix.states() for states in layer
    )
    return per_position * positions


def kept_bytes(work: Callable[[], torch.Tensor], weights: Iterable[torch.Tensor]) -> int:
    """Bytes of what ``work`` keeps for a gradient of its result ``without_gates``.

    ``weights`` are there anyway and do not count.
    """
    there = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()

    with without_gates(note):
        result = work()
    total = sum(size for place, size in kept.items() if place not in there)
    del result  # until now it has held all of it, so that no place was taken twice
    return total
