"""A twin of a network with linear layers in 8 bits, for rollouts on a CPU: quicker, and not quite the same.

Weights are int8 with a scale for each output channel. Inputs are 7 bits wide with a scale for each row, so that what
a row draws does not depend on who is drawn beside it; 7, because without VNNI FBGEMM adds pairs of products in 16
bits, which 8 would overflow. All else (norms, embeddings, attention, rotary) is the network's own and is not copied.
Knows modules and tensors; knows nothing of rows, memories or training.
"""

from __future__ import annotations

import copy
import warnings
from typing import TypeVar

import torch
from torch import nn

from elm_agent.errors import ModelError
from elm_agent.models.memory import spare_bytes
from elm_agent.models.network import Network

_Module = TypeVar("_Module", bound=nn.Module)


class Int8Linear(nn.Module):
    """``nn.Linear`` without gradient, from a packed copy of its weights; the bias is shared. float32 on a CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        weight_OI = linear.weight.detach()
        scale_O = weight_OI.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny).double() / 127
        zeros_O = torch.zeros(linear.out_features, dtype=torch.long)  # of another type they would silently be garbage
        with warnings.catch_warnings():  # torch has announced that these types will go; see `why_not_int8`
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
            int8_OI = torch.quantize_per_channel(weight_OI, scale_O, zeros_O, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(int8_OI, None)
        # With this row among the others the range of the inputs is always [-1, 1], and each row has its own scale.
        ends = [-1.0, 1.0, *[0.0] * (linear.in_features - 2)]
        self._range_1I = torch.tensor([ends], dtype=weight_OI.dtype)

    @torch.no_grad()
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        flat_RI = inputs.reshape(-1, self.in_features)
        scale_R1 = flat_RI.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        within_RI = torch.cat([flat_RI / scale_R1, self._range_1I])
        out_RO: torch.Tensor = torch.ops.quantized.linear_dynamic(within_RI, self._packed, True)[:-1] * scale_R1
        if self.bias is not None:
            out_RO = out_RO + self.bias
        return out_RO.reshape(*inputs.shape[:-1], self.out_features)


def why_not_int8(network: Network) -> str | None:
    """Why this network has no twin in 8 bits, in one phrase; None if it can have one."""
    if network.device.type != "cpu":
        return f"the model is on {network.device}, and these products exist on a CPU only"
    if network.dtype != torch.float32:
        return f"the model is loaded as {str(network.dtype).removeprefix('torch.')}, not as float32"
    if network.why_slow is not None:
        return network.why_slow
    if "fbgemm" not in torch.backends.quantized.supported_engines or not hasattr(torch, "quantize_per_channel"):
        return f"torch {torch.__version__} comes without the products of FBGEMM here"
    return None


def int8_bytes(network: Network) -> int:
    """Bytes that the twin takes beside the network."""
    return sum(module.weight.numel() for module in network.model.modules() if isinstance(module, nn.Linear))


def int8_twin(network: Network) -> Network:
    """The network with every linear layer, the head among them, in 8 bits; it shares everything else.

    Raises ``ModelError`` where there can be none, or where it does not fit into memory.
    """
    if (why := why_not_int8(network)) is not None:
        raise ModelError(f"rollouts in 8 bits: {why}; use rollout_weights 'exact'")
    wanted, spare = int8_bytes(network), spare_bytes(network.device)
    if spare is not None and wanted > spare // 2:
        raise ModelError(
            f"rollouts in 8 bits take {wanted // 2**20} MiB beside the model, and {spare // 2**20} MiB are free, of "
            "which half is kept for rows in flight: use rollout_weights 'exact'"
        )
    return Network(_twin(network.model), exact=False)


def _twin(module: _Module) -> _Module:
    if isinstance(module, nn.Linear):
        return Int8Linear(module)  # type: ignore[return-value]
    if not module._modules:
        return module
    twin = copy.copy(module)
    twin._modules = {name: None if child is None else _twin(child) for name, child in module._modules.items()}
    return twin
