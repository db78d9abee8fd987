"""Retrieval keys and queries of a network (METHOD section 2): pooled input embeddings, pooled attention projections.

All results are unit vectors in float32 on CPU, so that a cosine is an inner product.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from elm_agent.errors import ModelError
from elm_agent.models.hooks import hooked
from elm_agent.models.network import Network
from elm_agent.models.step import unrotated
from elm_agent.records import Vector


def unit(vector: torch.Tensor) -> Vector:
    """``vector`` scaled to length 1, as float32; a zero vector is refused (it has no direction)."""
    length = float(vector.double().norm())
    if not np.isfinite(length) or length == 0.0:
        raise ModelError(f"a retrieval key needs a finite direction; got a vector of length {length}")
    return (vector.double() / length).float().cpu().numpy()


def input_key(embeds_TE: torch.Tensor) -> Vector:
    """Mean over tokens of input embeddings, or over V of a soft prompt: unit (E,)."""
    return unit(embeds_TE.float().mean(dim=0))


def kv_key(network: Network, prompt_VE: torch.Tensor, *, kv_heads: str) -> Vector:
    """Key of a soft prompt: the key projections of every layer, pooled over V: unit (L * width,)."""
    return _layerwise(network, prompt_VE, "k_proj", kv_heads)


def kv_query(network: Network, embeds_TE: torch.Tensor, *, kv_heads: str) -> Vector:
    """Query of a question: the query projections of every layer, pooled over tokens: unit (L * width,)."""
    return _layerwise(network, embeds_TE, "q_proj", kv_heads)


def states_key(network: Network, keys_LHVD: torch.Tensor, *, kv_heads: str) -> Vector:
    """Key of attention keys at positions 0 to V - 1 of every layer, their rotation undone: unit (L * width,).

    A norm that the architecture gives its keys after projecting (Qwen3, Gemma 3) stays in them.
    """
    keys_LHVD = unrotated(network.model, keys_LHVD.detach())
    return _joined(
        pool_heads(keys_HVD.transpose(0, 1).flatten(1).float(), len(keys_HVD), len(keys_HVD), keep=kv_heads == "keep")
        for keys_HVD in keys_LHVD
    )


def has_kv_keys(network: Network) -> bool:
    """Whether this architecture has separate query and key projections in every layer."""
    return bool(_projections(network, "q_proj")) and bool(_projections(network, "k_proj"))


@torch.no_grad()
def _layerwise(network: Network, embeds_TE: torch.Tensor, projection: str, kv_heads: str) -> Vector:
    config = network.model.config.get_text_config()
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    modules = _projections(network, projection)
    if not modules:
        kind = network.model.config.model_type
        raise ModelError(f"kv retrieval needs separate {projection} layers; {kind!r} has none: use key='input'")
    with _captured(modules) as outputs:
        network.read([embeds_TE.to(network.dtype)])
    heads = config.num_attention_heads if projection == "q_proj" else key_heads
    return _joined(pool_heads(out[0].float(), heads, key_heads, keep=kv_heads == "keep") for out in outputs)


def _joined(pooled: Iterable[torch.Tensor]) -> Vector:
    """Unit per layer, then unit as a whole: the inner product is the mean over layers of cosines."""
    return unit(torch.cat([torch.from_numpy(unit(layer)) for layer in pooled]))


def pool_heads(states_TD: torch.Tensor, heads: int, key_heads: int, *, keep: bool) -> torch.Tensor:
    """Mean over tokens, then over heads: (head width,); with ``keep`` each key head stays: (key_heads * head width,).

    Query heads are first averaged into the key head that serves them.
    """
    head_width = states_TD.shape[-1] // heads
    per_head = states_TD.mean(dim=0).view(key_heads, heads // key_heads, head_width).mean(dim=1)
    return per_head.flatten() if keep else per_head.mean(dim=0)


def _projections(network: Network, name: str) -> list[nn.Module]:
    # Qwen3 and Gemma 3 normalise heads after projecting; the projection itself is what the method names.
    return [module for path, module in network.model.named_modules() if path.endswith(f"self_attn.{name}")]


@contextmanager
def _captured(modules: list[nn.Module]) -> Iterator[list[torch.Tensor]]:
    outputs: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        outputs.append(output)

    with hooked((module, keep) for module in modules):
        yield outputs
