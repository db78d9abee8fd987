"""How much memory there is and how much a row in flight takes: asked before rows are taken on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from elm_agent.models.network import Prefix


def spare_bytes(device: torch.device) -> int | None:
    """Bytes that new tensors on ``device`` may take; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    try:
        with open("/proc/meminfo") as lines:
            kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        if "SC_AVPHYS_PAGES" not in names:
            return None
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(kilobytes) * 1024


def out_of_memory(error: BaseException) -> bool:
    """Whether this is torch's way of saying that memory has run out; on a CPU it has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def row_bytes(prefix: Prefix, positions: int) -> int:
    """Bytes of the keys and values of one row of ``positions`` after ``prefix``."""
    per_position = sum(
        states.shape[1] * states.shape[3] * states.element_size() for layer in prefix.states() for states in layer
    )
    return per_position * positions
