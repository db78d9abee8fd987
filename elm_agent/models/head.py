"""Log-probabilities of given tokens straight from hidden states, without ever holding all logits at once."""

from __future__ import annotations

from typing import Any

import torch

_LOGITS = 2**24  # numbers of one chunk of logits


def token_logprobs(logits_NV: torch.Tensor, tokens_N: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probability (N,) in nats of each token under logits / temperature, at least in float32."""
    scaled_NV = logits_NV / temperature
    return scaled_NV.gather(-1, tokens_N[..., None])[..., 0] - scaled_NV.logsumexp(dim=-1)


def head_logprobs(
    hidden_NE: torch.Tensor, weight_VE: torch.Tensor, tokens_N: torch.Tensor, temperature: float
) -> torch.Tensor:
    """``token_logprobs`` of ``hidden @ weight.T``: (N,), at least float32. Only ``hidden_NE`` gets a gradient."""
    chosen_N: torch.Tensor = _HeadLogprobs.apply(hidden_NE, weight_VE, tokens_N, temperature)  # type: ignore[no-untyped-call]
    return chosen_N


def wide_product(left: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``left @ weights`` in at least float32: between 16 and 32, logits in bfloat16 would have steps of 0.125."""
    if weights.dtype not in (torch.float16, torch.bfloat16):
        return left @ weights
    if weights.device.type == "cuda":
        return torch.mm(left.to(weights.dtype), weights, out_dtype=torch.float32)
    return left.float() @ weights.float()


class _HeadLogprobs(torch.autograd.Function):
    """d log p(y) / d h = (W[y] - sum_v p_v W[v]) / temperature is as wide as h: kept instead of the logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NE: torch.Tensor, weight_VE: torch.Tensor, tokens_N: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0]
        slope_NE = torch.empty_like(hidden_NE) if wanted else None
        chunks = []
        size = max(16, _LOGITS // weight_VE.shape[0])
        for first in range(0, hidden_NE.shape[0], size):
            part = slice(first, first + size)
            wide_NV = wide_product(hidden_NE[part], weight_VE.t()).div_(temperature)
            wide_NV -= wide_NV.amax(dim=-1, keepdim=True)
            chosen_N = wide_NV.gather(-1, tokens_N[part, None])[:, 0]
            wide_NV.exp_()  # in place, all of it: this is as large as memory allows
            total_N = wide_NV.sum(dim=-1)
            chunks.append(chosen_N - total_N.log())
            if slope_NE is not None:
                expected_NE = wide_product(wide_NV, weight_VE) / total_N[:, None]
                slope_NE[part] = (weight_VE[tokens_N[part]] - expected_NE) / temperature
        if slope_NE is not None:
            ctx.save_for_backward(slope_NE)
        return torch.cat(chunks)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        (slope_NE,) = ctx.saved_tensors
        return grads[0][:, None].to(slope_NE.dtype) * slope_NE, None, None, None
