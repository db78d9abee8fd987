"""Linear layers that are quick for a handful of rows, which is what decoding on a CPU consists of.

``x @ W.T`` with 1 to 32 rows runs at a fraction of the memory bandwidth in the BLAS that ships with torch; the
same product written as ``(W @ x.T).T`` is two to four times faster from 2 rows on, and 2 rows cost less than 1.
The values differ by rounding only. Measured in benchmarks, see docs/LOG.md.
"""

from __future__ import annotations

import torch
from torch import nn

_MOST_ROWS = 32


class SkinnyLinear(nn.Linear):
    """``nn.Linear`` that turns thin products around when no gradient is wanted."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.numel() // self.in_features
        if rows > _MOST_ROWS or torch.is_grad_enabled():
            return super().forward(input)
        flat_RD = input.reshape(rows, self.in_features)
        if rows == 1:
            flat_RD = flat_RD.expand(2, -1).contiguous()
        out_RD = (self.weight @ flat_RD.t()).t()[:rows]
        if self.bias is not None:
            out_RD = out_RD + self.bias
        return out_RD.reshape(*input.shape[:-1], self.out_features)


def use_skinny_linears(model: nn.Module) -> None:
    """Make every plain float32 CPU linear layer of ``model`` a ``SkinnyLinear``, in place; weights are untouched."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
            module.__class__ = SkinnyLinear
