"""Linear layers that are quick for a handful of rows, which is what decoding on a CPU consists of.

``x @ W.T`` with 1 to 32 rows runs at a fraction of the memory bandwidth in the BLAS that ships with torch. The same
product written as ``(W @ x.T).T`` is two to four times faster from 2 rows on, and 2 rows cost less than 1; from 5 to
16 rows a batch of four products, each with a quarter of W, is quicker still: every thread has whole products to do.
The values differ by rounding only. Measured in benchmarks, see docs/LOG.md.
"""

from __future__ import annotations

import torch
from torch import nn

_MOST_ROWS = 32
_PARTED_ROWS = range(5, 17)
_PARTS = 4
_MOST_PARTED = 8192  # outputs; the head is quicker in one piece


class SkinnyLinear(nn.Linear):
    """``nn.Linear`` that turns thin products around when no gradient is wanted."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.numel() // self.in_features
        if rows > _MOST_ROWS or torch.is_grad_enabled():
            return super().forward(input)
        flat_RD = input.reshape(rows, self.in_features)
        parted = rows in _PARTED_ROWS and self.out_features <= _MOST_PARTED and self.out_features % _PARTS == 0
        out_RO = self._in_parts(flat_RD) if parted else self._turned(flat_RD)
        if self.bias is not None:
            out_RO = out_RO + self.bias
        return out_RO.reshape(*input.shape[:-1], self.out_features)

    def _turned(self, flat_RD: torch.Tensor) -> torch.Tensor:
        rows = flat_RD.shape[0]
        if rows == 1:
            flat_RD = flat_RD.expand(2, -1).contiguous()
        return (self.weight @ flat_RD.t()).t()[:rows]

    def _in_parts(self, flat_RD: torch.Tensor) -> torch.Tensor:
        parts_PDO = self.weight.view(_PARTS, -1, self.in_features).transpose(1, 2)
        return torch.bmm(flat_RD.expand(_PARTS, -1, -1), parts_PDO).transpose(0, 1).reshape(-1, self.out_features)


def use_skinny_linears(model: nn.Module) -> None:
    """Make every plain float32 CPU linear layer of ``model`` a ``SkinnyLinear``, in place; weights are untouched."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
            module.__class__ = SkinnyLinear
