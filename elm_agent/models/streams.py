"""A CUDA stream for each thread that computes: kernels of one then do not queue behind those of another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Lane:
    """Work in here begins after what other threads have asked of the GPU, and is done when it ends.

    So tensors may go from thread to thread as on a CPU. Threads without a lane use the device's default stream.

    Args:
        urgent: goes before work of lanes that are not, kernel by kernel.
    """

    def __init__(self, device: torch.device, *, urgent: bool) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=-1 if urgent else 0)  # type: ignore[no-untyped-call]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self._stream.wait_stream(torch.cuda.default_stream(self._device))
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            self._stream.synchronize()
