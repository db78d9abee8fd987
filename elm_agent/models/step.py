"""One token for every row in flight, or a few, for the architectures whose layers are known: the quick way to decode.

The network's own projections, norms and rotary embedding are called in the order in which its layers call them;
left out is what transformers does around them at every token: joining caches, building masks, repeating keys for
grouped queries. Same mathematics, other order of sums. What is not known here is decoded by transformers itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    if moving := moving_rotations(model):
        return f"its rotary embedding is of type {', '.join(moving)}"
    return None


def moving_rotations(model: PreTrainedModel) -> list[str]:
    """Types of rotary embeddings that transformers changes within a pass, by the length of its rows."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = {part.get("rope_type", "default") for part in (rope, *rope.values()) if isinstance(part, dict)}
    return sorted(kinds - _FIXED_ROPE)


def window_of(model: PreTrainedModel, layer: Any) -> int | None:
    """How many positions a layer of a known architecture sees, itself included; None: all that came before."""
    everywhere = getattr(model.config, "sliding_window", None) if model.config.model_type == "mistral" else None
    window: int | None = getattr(layer.self_attn, "sliding_window", everywhere)
    return window


@torch.no_grad()
def step(
    model: PreTrainedModel, slots: Slots, tokens_N: torch.Tensor, counts: Sequence[int] | None = None
) -> torch.Tensor:
    """Append one token to every row of ``slots``, or ``counts`` of them to each, which stand row after row.

    Returns logits (N, vocabulary), model dtype.
    """
    places = _places(slots, counts)
    length = slots.grow(1 if counts is None else max(counts))
    logits_NV = _pass(model, slots, places, tokens_N, length)
    slots.lengths_B = slots.lengths_B + (1 if counts is None else places.counts_B)
    return logits_NV


@torch.no_grad()
def fixed_step(model: PreTrainedModel, slots: Slots, tokens_B: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """``step`` for one token of the first B slots, of any use, without a shape or a choice that depends on values.

    So it can be recorded and replayed: the next token of slot b stands at ``lengths_B[b]``, and every position there
    is room for is looked at, most of them masked. Who calls it makes room and counts. Logits (B, vocabulary).
    """
    rows_B = torch.arange(tokens_B.shape[0], device=tokens_B.device)
    places = _Places(rows_B, lengths_B, lengths_B[:, None], torch.ones_like(lengths_B), None)
    return _pass(model, slots, places, tokens_B, slots.keys[0].shape[2], masked=True)


def _pass(
    model: PreTrainedModel,
    slots: Slots,
    places: _Places,
    tokens_N: torch.Tensor,
    length: int,
    *,
    masked: bool = False,
) -> torch.Tensor:
    """Read tokens into their places; attention sees ``length`` positions. ``masked``: there is something to hide."""
    inner, rows = model.model, places.positions_BT.shape[0]
    hidden_NE = inner.embed_tokens(tokens_N)
    rotations: dict[str | None, tuple[torch.Tensor, torch.Tensor]] = {}
    masks: dict[int | None, torch.Tensor | None] = {}
    for index, layer in enumerate(inner.layers):
        attention = layer.self_attn
        kind = getattr(attention, "layer_type", None) if model.config.model_type == "gemma3_text" else None
        window = window_of(model, layer)
        if kind not in rotations:
            rotations[kind] = _rotation(inner.rotary_emb, hidden_NE, places.positions_N, kind)
        if window not in masks:
            masks[window] = _mask(places.positions_BT, length, window, hidden_NE.dtype, masked=masked)
        queries_NHD, keys_NHD, values_NHD = _project(attention, layer.input_layernorm(hidden_NE), rotations[kind])
        keys, values = slots.keys[index], slots.values[index]
        keys[places.rows_N, :, places.positions_N] = keys_NHD
        values[places.rows_N, :, places.positions_N] = values_NHD
        # The queries that share a key head are its rows: nothing is repeated.
        mixed = scaled_dot_product_attention(
            places.grouped(queries_NHD, keys_NHD.shape[1]),
            keys[:rows, :, :length],
            values[:rows, :, :length],
            attn_mask=places.repeated(masks[window], queries_NHD.shape[1] // keys_NHD.shape[1]),
            scale=attention.scaling,
        )
        hidden_NE = _finish(layer, hidden_NE, attention.o_proj(places.ungrouped(mixed)))
    logits_NV: torch.Tensor = model.lm_head(inner.norm(hidden_NE))
    return logits_NV


@dataclass(frozen=True, slots=True)
class _Places:
    """Where N tokens of B rows belong, at most T of a row. Attention alone sees them as B x T, padded.

    ``within_N``: which of its row's tokens each is; None where each row has one.
    """

    rows_N: torch.Tensor
    positions_N: torch.Tensor
    positions_BT: torch.Tensor
    counts_B: torch.Tensor
    within_N: torch.Tensor | None

    def grouped(self, queries_NHD: torch.Tensor, key_heads: int) -> torch.Tensor:
        """(B, key heads, queries of a head, D): for each head that shares it the T of a row."""
        (rows, width), (_, heads, size) = self.positions_BT.shape, queries_NHD.shape
        if self.within_N is None:
            return queries_NHD.view(rows, key_heads, -1, size)
        padded_BTHD = queries_NHD.new_zeros(rows, width, heads, size)
        padded_BTHD[self.rows_N, self.within_N] = queries_NHD
        return padded_BTHD.transpose(1, 2).reshape(rows, key_heads, -1, size)

    def ungrouped(self, mixed: torch.Tensor) -> torch.Tensor:
        """What ``grouped`` queries have found: (N, heads * D)."""
        if self.within_N is None:
            return mixed.flatten(1)
        rows, width = self.positions_BT.shape
        mixed_BTHD = mixed.reshape(rows, -1, width, mixed.shape[-1]).transpose(1, 2)
        return mixed_BTHD[self.rows_N, self.within_N].flatten(1)

    def repeated(self, mask: torch.Tensor | None, heads: int) -> torch.Tensor | None:
        """The mask (B, 1, T, length) for as many query heads as share a key head."""
        return mask if mask is None or self.within_N is None else mask.repeat(1, 1, heads, 1)


def _places(slots: Slots, counts: Sequence[int] | None) -> _Places:
    lengths_B = slots.lengths_B
    rows_B = torch.arange(slots.rows, device=lengths_B.device)
    if counts is None:
        return _Places(rows_B, lengths_B, lengths_B[:, None], torch.ones_like(lengths_B), None)
    counts_B = torch.tensor(list(counts), device=lengths_B.device)
    rows_N = rows_B.repeat_interleave(counts_B)
    within_N = torch.cat([torch.arange(count, device=lengths_B.device) for count in counts])
    positions_BT = lengths_B[:, None] + torch.arange(max(counts), device=lengths_B.device)
    return _Places(rows_N, lengths_B[rows_N] + within_N, positions_BT, counts_B, within_N)


@torch.no_grad()
def unrotated(model: PreTrainedModel, keys_LHVD: torch.Tensor) -> torch.Tensor:
    """Keys (L, H, V, D) of a known architecture, at positions 0 to V - 1, as they were before their rotation.

    Up to a factor where the rotary embedding scales (yarn).
    """
    inner, positions_V = model.model, torch.arange(keys_LHVD.shape[2], device=keys_LHVD.device)
    plain = []
    for layer, keys_HVD in zip(inner.layers, keys_LHVD, strict=True):
        kind = getattr(layer.self_attn, "layer_type", None) if model.config.model_type == "gemma3_text" else None
        cos_V1D, sin_V1D = _rotation(inner.rotary_emb, keys_HVD, positions_V, kind)
        plain.append(_rotated(keys_HVD, cos_V1D[:, 0], -sin_V1D[:, 0]))
    return torch.stack(plain)


@torch.no_grad()
def moved_back(model: PreTrainedModel, keys_LHVD: torch.Tensor, positions: int) -> torch.Tensor:
    """Keys (L, H, V, D) of a known architecture as they were, had each been read so many positions earlier.

    Rotations add up, so this is exact; a factor that the rotary embedding puts on its keys (yarn) stays on them.
    """
    inner, by_1 = model.model, torch.tensor([positions], device=keys_LHVD.device)
    moved = []
    for layer, keys_HVD in zip(inner.layers, keys_LHVD, strict=True):
        kind = getattr(layer.self_attn, "layer_type", None) if model.config.model_type == "gemma3_text" else None
        cos_11D, sin_11D = _rotation(inner.rotary_emb, keys_HVD, by_1, kind)
        factor_11D = torch.hypot(cos_11D, sin_11D)
        moved.append(_rotated(keys_HVD, cos_11D / factor_11D, -sin_11D / factor_11D))
    return torch.stack(moved)


def _rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-right, left], dim=-1) * sin


def _rotation(rotary: Any, hidden_BE: torch.Tensor, positions_B: torch.Tensor, kind: str | None) -> Any:
    arguments = (hidden_BE[:, None], positions_B[:, None])
    return rotary(*arguments) if kind is None else rotary(*arguments, kind)


def _mask(
    positions_BT: torch.Tensor, length: int, window: int | None, dtype: torch.dtype, *, masked: bool
) -> torch.Tensor | None:
    """What each token sees, added to its scores: (B, 1, T, length); None if everything, unless it is ``masked``."""
    from_end_BTL = positions_BT[..., None] - torch.arange(length, device=positions_BT.device)
    seen_BTL = from_end_BTL >= 0 if window is None else (from_end_BTL >= 0) & (from_end_BTL < window)
    if not masked and bool(seen_BTL.all()):
        return None
    hidden_BTL = torch.zeros(seen_BTL.shape, dtype=dtype, device=seen_BTL.device).masked_fill_(~seen_BTL, -torch.inf)
    return hidden_BTL[:, None]


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
    both_BHD = _rotated(torch.cat([queries_BHD, keys_BHD], dim=1), cos_B1D, sin_B1D)
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
