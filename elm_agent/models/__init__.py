"""The local language model: fetch, load, embed, generate with and without soft prompts, log-probabilities, keys.

The only room that imports transformers. Knows nothing of memories' records, stores or routes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from elm_agent.models.engine import LocalModel

logger = logging.getLogger(__name__)


def spin_briefly() -> None:
    """Let idle OpenMP threads spin for microseconds before they sleep; must come before torch is imported.

    Decoding is many small parallel sections. Beside other work, threads that spin for long (the default) take the
    processor from the one that is waited for; threads that never spin are slow on a quiet machine. A value or wait
    policy that the user has set stays. Figures: docs/LOG.md.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def load(
    name: str,
    *,
    gguf_file: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    cache_dir: Path | None = None,
    offline: bool = False,
    max_batch_rows: int = 64,
    join_window_ms: float = 4.0,
    kv_heads: str = "mean",
    ignore_end: bool = False,
    pack: bool = True,
    graphs: bool = False,
    prefix_cache_mb: int = 256,
    overlap: bool = False,
    engine: Literal["native", "vllm"] = "native",
    gpu_memory_utilization: float = 0.4,
    vllm_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LocalModel:
    """A ready engine for an embedded name, hub id, local folder or GGUF file.

    Args:
        threads: CPU threads of torch (process-wide); None leaves its default.
        join_window_ms: milliseconds that the first request of a batch waits for company.
        ignore_end: rows run to their limits whatever they draw, for measurements.
        pack: decode with a second copy of the weights that is packed for it, float32 on a CPU: twice as quick.
        graphs: decode by CUDA graphs on a GPU.
        prefix_cache_mb: MiB for what answers' rows begin with, so that it is read once; where weights are packed.
        overlap: draw tokens while memories are updated; for a GPU.
        engine: who draws tokens: this network, or vLLM with the same weights; see ``VllmTokens`` for
            ``gpu_memory_utilization`` and ``vllm_options``.
        progress: told (bytes done, bytes in all) while something is downloaded.

    Raises:
        SettingsError: vLLM is not installed, or cannot be used so.
        ModelUnavailable: its files are not here and could not be fetched.
    """
    spin_briefly()
    import torch

    from elm_agent.models.engine import LocalModel
    from elm_agent.models.loading import load_pretrained, why_eager
    from elm_agent.models.skinny import use_skinny_linears
    from elm_agent.models.vllm_engine import refuse_missing, vllm_drawer

    if engine == "vllm":
        refuse_missing()  # before anything is fetched
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = load_pretrained(
        name,
        gguf_file=gguf_file,
        device=device,
        dtype=dtype,
        cache_dir=cache_dir,
        offline=offline,
        progress=progress,
    )
    use_skinny_linears(loaded.model)
    drawer = None
    if engine == "vllm":
        drawer = vllm_drawer(loaded.folder, gpu_memory_utilization=gpu_memory_utilization, options=vllm_options or {})
    model = LocalModel(
        loaded.model,
        loaded.tokenizer,
        loaded.fingerprint,
        max_batch_rows=max_batch_rows,
        join_window=join_window_ms / 1000,
        kv_heads=kv_heads,
        ignore_end=ignore_end,
        pack=pack,
        graphs=graphs,
        prefix_cache_bytes=prefix_cache_mb << 20,
        overlap=overlap,
        drawer=drawer,
    )
    reasons = (model.network.why_slow, model.network.why_reread, why_eager(loaded.model))
    if slower := [why for why in reasons if why is not None]:
        logger.warning("model %r is run as it is, correct but slower: %s", name, "; ".join(slower))
    return model
