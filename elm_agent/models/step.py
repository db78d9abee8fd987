"""One token for every row in flight, for the architectures whose layers are known: the quick way to decode.

The network's own projections, norms and rotary embedding are called in the order in which its layers call them;
left out is what transformers does around them at every token: joining caches, building masks, repeating keys for
grouped queries. Same mathematics, other order of sums. What is not known here is decoded by transformers itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from elm_agent.models.slots import Slots

_KNOWN = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text"})
_ATTENTION = frozenset({"full_attention", "sliding_attention"})
_FIXED_ROPE = frozenset({"default", "linear", "llama3", "yarn"})  # others change with the length of a row


def why_unknown(model: PreTrainedModel) -> str | None:
    """Why this network is not decoded by ``step``, in one phrase; None if it is."""
    config = model.config
    if config.model_type not in _KNOWN:
        return f"its architecture {config.model_type!r} is not among {', '.join(sorted(_KNOWN))}"
    if getattr(config, "use_bidirectional_attention", None):
        return "its attention looks ahead"
    if unknown := set(getattr(config, "layer_types", None) or ()) - _ATTENTION:
        return f"it has layers of type {', '.join(sorted(unknown))}"
    if any(getattr(config, name, None) for name in ("final_logit_softcapping", "attn_logit_softcapping")):
        return "it caps its logits"
    if model.lm_head.bias is not None:
        return "its head has a bias"
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type", "default") for part in (rope, *rope.values()) if isinstance(part, dict)}
    if kinds - _FIXED_ROPE:
        return f"its rotary embedding is of type {', '.join(sorted(kinds - _FIXED_ROPE))}"
    return None


@torch.no_grad()
def step(model: PreTrainedModel, slots: Slots, tokens_B: torch.Tensor) -> torch.Tensor:
    """Append one token to every row of ``slots``. Returns logits (B, vocabulary), model dtype."""
    inner, positions_B = model.model, slots.lengths_B
    rows_B, length = torch.arange(slots.rows, device=tokens_B.device), slots.grow()
    hidden_BE = inner.embed_tokens(tokens_B)
    everywhere = getattr(model.config, "sliding_window", None) if model.config.model_type == "mistral" else None
    rotations: dict[str | None, tuple[torch.Tensor, torch.Tensor]] = {}
    masks: dict[int | None, torch.Tensor | None] = {}
    for index, layer in enumerate(inner.layers):
        attention = layer.self_attn
        kind = getattr(attention, "layer_type", None) if model.config.model_type == "gemma3_text" else None
        window = getattr(attention, "sliding_window", everywhere)
        if kind not in rotations:
            rotations[kind] = _rotation(inner.rotary_emb, hidden_BE, positions_B, kind)
        if window not in masks:
            masks[window] = _mask(positions_B, length, window, hidden_BE.dtype)
        queries_BHD, keys_BHD, values_BHD = _project(attention, layer.input_layernorm(hidden_BE), rotations[kind])
        keys, values = slots.keys[index], slots.values[index]
        keys[rows_B, :, positions_B] = keys_BHD
        values[rows_B, :, positions_B] = values_BHD
        # The queries that share a key head are its rows: nothing is repeated.
        mixed = scaled_dot_product_attention(
            queries_BHD.view(slots.rows, keys_BHD.shape[1], -1, keys_BHD.shape[2]),
            keys[: slots.rows, :, :length],
            values[: slots.rows, :, :length],
            attn_mask=masks[window],
            scale=attention.scaling,
        )
        hidden_BE = _finish(layer, hidden_BE, attention.o_proj(mixed.flatten(1)))
    slots.lengths_B = positions_B + 1
    logits_BV: torch.Tensor = model.lm_head(inner.norm(hidden_BE))
    return logits_BV


def _rotation(rotary: Any, hidden_BE: torch.Tensor, positions_B: torch.Tensor, kind: str | None) -> Any:
    arguments = (hidden_BE[:, None], positions_B[:, None])
    return rotary(*arguments) if kind is None else rotary(*arguments, kind)


def _mask(positions_B: torch.Tensor, length: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
    """What each row sees, added to its scores: (B, 1, 1, length); None if everything."""
    from_end_BL = positions_B[:, None] - torch.arange(length, device=positions_B.device)
    seen_BL = from_end_BL >= 0 if window is None else (from_end_BL >= 0) & (from_end_BL < window)
    if bool(seen_BL.all()):
        return None
    hidden_BL = torch.zeros(seen_BL.shape, dtype=dtype, device=seen_BL.device).masked_fill_(~seen_BL, -torch.inf)
    return hidden_BL[:, None, None]


def _project(
    attention: Any, hidden_BE: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotated queries (B, heads, D), rotated keys and values (B, key heads, D)."""
    rows, width = hidden_BE.shape[0], attention.head_dim
    queries_BHD = attention.q_proj(hidden_BE).view(rows, -1, width)
    keys_BHD = attention.k_proj(hidden_BE).view(rows, -1, width)
    values_BHD = attention.v_proj(hidden_BE).view(rows, -1, width)
    if hasattr(attention, "q_norm"):
        queries_BHD, keys_BHD = attention.q_norm(queries_BHD), attention.k_norm(keys_BHD)
    cos_B1D, sin_B1D = rotation
    both_BHD = torch.cat([queries_BHD, keys_BHD], dim=1)
    left, right = both_BHD.chunk(2, dim=-1)
    both_BHD = both_BHD * cos_B1D + torch.cat([-right, left], dim=-1) * sin_B1D
    heads = queries_BHD.shape[1]
    return both_BHD[:, :heads], both_BHD[:, heads:], values_BHD


def _finish(layer: Any, hidden_BE: torch.Tensor, mixed_BE: torch.Tensor) -> torch.Tensor:
    """The layer's second half: residuals and MLP, with Gemma's norms around both where there are any."""
    if hasattr(layer, "pre_feedforward_layernorm"):
        hidden_BE = hidden_BE + layer.post_attention_layernorm(mixed_BE)
        inner_BE = layer.mlp(layer.pre_feedforward_layernorm(hidden_BE))
        out_BE: torch.Tensor = hidden_BE + layer.post_feedforward_layernorm(inner_BE)
    else:
        hidden_BE = hidden_BE + mixed_BE
        out_BE = hidden_BE + layer.mlp(layer.post_attention_layernorm(hidden_BE))
    return out_BE
