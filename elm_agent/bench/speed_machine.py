"""The limits of this machine for one model, and the memory a process took: measured where the model runs."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elm_agent.bench.speed_bounds import Machine

if TYPE_CHECKING:
    import torch

    from elm_agent.models.engine import LocalModel
    from elm_agent.models.loading import Loaded

_ROUNDS = 3
OPENMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # what changes how quickly threads work together
_SQUARE = 2048  # of the product that no shape of a small model keeps from the peak


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """Which model to open and how; see ``models.load``."""

    name: str
    gguf_file: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    cache_dir: Path | None = None
    offline: bool = False
    pack: bool = True  # this and what follows: of this library alone
    graphs: bool = False
    overlap: bool = False

    def native(self, *, ignore_end: bool, max_batch_rows: int = 64) -> LocalModel:
        """As this library opens it."""
        from elm_agent import models

        return models.load(
            self.name,
            gguf_file=self.gguf_file,
            device=self.device,
            dtype=self.dtype,
            threads=self.threads,
            cache_dir=self.cache_dir,
            offline=self.offline,
            pack=self.pack,
            graphs=self.graphs,
            overlap=self.overlap,
            ignore_end=ignore_end,
            max_batch_rows=max_batch_rows,
        )

    def plain(self) -> Loaded:
        """As transformers opens it."""
        import torch

        from elm_agent.models.loading import load_pretrained

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return load_pretrained(
            self.name,
            gguf_file=self.gguf_file,
            device=self.device,
            dtype=self.dtype,
            cache_dir=self.cache_dir,
            offline=self.offline,
        )


class Probe:
    """Measures the limits whenever it is asked; the best figures are the limits."""

    def __init__(self, *, model: ModelChoice, question: str) -> None:
        import torch

        from elm_agent.tasks import get_task

        local = model.native(ignore_end=True)
        self._model, self._network, self._torch = model, local.network, torch
        self._weights = _weights(local.network.model)
        self._prompt = len(local.encode(get_task("math").messages(question)))
        self._context = local.context_length

    def about(self) -> dict[str, Any]:
        torch, device = self._torch, self._network.device
        return {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            "kind": device.type,
            "dtype": str(self._network.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "openmp": {name: os.environ[name] for name in OPENMP if name in os.environ},
            "pack": self._model.pack,
            "graphs": self._model.graphs,
            "overlap": self._model.overlap,
            "prompt_tokens": self._prompt,
            "context_length": self._context,
        }

    def measure(self, rows: int) -> Machine:
        """Limits with ``rows`` rows in a product, as in one micro-batch."""
        torch = self._torch
        with torch.no_grad():
            seconds = best(lambda: [weight.sum() for weight in self._weights], self._wait)
            size = sum(weight.numel() for weight in self._weights)
            width = sum(weight.numel() * weight.element_size() for weight in self._weights)
            return Machine(
                parameters=size,
                weight_bytes=width,
                bytes_per_s=width / seconds,
                flops_per_s=max(self._products(rows), self._square()),
            )

    def _products(self, rows: int) -> float:
        """FLOP/s of ``rows`` rows through every weight of the model; weights of one shape are timed once."""
        work = seconds = 0.0
        for (wide, narrow), count in Counter(tuple(weight.shape) for weight in self._weights).items():
            left = self._torch.randn(rows, narrow, dtype=self._network.dtype, device=self._network.device)
            right = self._torch.randn(wide, narrow, dtype=self._network.dtype, device=self._network.device)
            seconds += count * best(partial(self._torch.matmul, left, right.t()), self._wait)
            work += count * 2.0 * rows * wide * narrow
        return work / seconds

    def _square(self) -> float:
        some = self._torch.randn(_SQUARE, _SQUARE, dtype=self._network.dtype, device=self._network.device)
        return 2.0 * _SQUARE**3 / best(lambda: some @ some, self._wait)

    def _wait(self) -> None:
        if self._network.device.type == "cuda":
            self._torch.cuda.synchronize()


def best(call: Callable[[], object], wait: Callable[[], None] = lambda: None, rounds: int = _ROUNDS) -> float:
    """Fewest seconds of some calls after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _weights(model: torch.nn.Module) -> list[torch.Tensor]:
    """Matrices that every token is multiplied with: the head also where it is the embedding, else not that one."""
    from torch.nn import Embedding

    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    left_out = {id(module.weight) for module in model.modules() if isinstance(module, Embedding)}
    left_out -= {id(head.weight)}
    return [weight for weight in model.parameters() if weight.ndim == 2 and id(weight) not in left_out]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def forget_peak(device: torch.device) -> str:
    """Let the peak of a model on ``device`` begin now; says since when it counts, for systems where it cannot."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return "since the model was loaded"
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return "since the process began"
    return "since the model was loaded"


def peak_bytes(device: torch.device) -> int:
    """Most bytes that were in use by a model on ``device``: on the GPU, or resident in this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024
    except (OSError, StopIteration):
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else used * 1024
