"""A twin of a network whose linear layers are a rounded copy, for rollouts on a CPU: quicker, and not quite the same.

A thin product is bound by reading weights, so fewer bytes are less time. ``float16`` halves them and is nearly exact;
``int8`` quarters them, and what it draws has to be corrected for. All else (norms, embeddings, attention, rotary) is
the network's own and is not copied. Knows modules and tensors; knows nothing of rows, memories or training.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import nn

from elm_agent.errors import ModelError
from elm_agent.models.memory import spare_bytes
from elm_agent.models.network import Network

_Module = TypeVar("_Module", bound=nn.Module)


class TwinLinear(nn.Module):
    """``nn.Linear`` without gradient, from a packed copy of its weights; the bias is shared. float32 on a CPU."""

    bytes_per_weight: int

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self._packed = self._pack(linear.weight.detach())

    @torch.no_grad()
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        out_RO = self._product(inputs.reshape(-1, self.in_features))
        if self.bias is not None:
            out_RO = out_RO + self.bias
        return out_RO.reshape(*inputs.shape[:-1], self.out_features)

    def _pack(self, weight_OI: torch.Tensor) -> torch.ScriptObject:
        raise NotImplementedError

    def _product(self, inputs_RI: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Float16Linear(TwinLinear):
    """Weights in float16, inputs and sums in float32."""

    bytes_per_weight = 2

    def _pack(self, weight_OI: torch.Tensor) -> torch.ScriptObject:
        packed: torch.ScriptObject = torch.ops.quantized.linear_prepack_fp16(weight_OI, None)
        return packed

    def _product(self, inputs_RI: torch.Tensor) -> torch.Tensor:
        product_RO: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(inputs_RI, self._packed)
        return product_RO


class Int8Linear(TwinLinear):
    """Inputs in 8 bits, weights in 7.

    Inputs have a scale for each row, so that a row does not depend on who is drawn beside it, weights one for each
    output. Not 8 and 8, because without VNNI FBGEMM adds pairs of products in 16 bits, which then overflow; and not 7
    for the inputs, because it is they that have outliers: docs/LOG.md has the figures.
    """

    bytes_per_weight = 1

    def _pack(self, weight_OI: torch.Tensor) -> torch.ScriptObject:
        scale_O = weight_OI.abs().amax(dim=1).clamp(min=_TINY).double() / 63
        zeros_O = torch.zeros(len(weight_OI), dtype=torch.long)  # of another type they would silently be garbage
        with warnings.catch_warnings():  # torch has announced that these types will go; see `why_no_twin`
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
            int8_OI = torch.quantize_per_channel(weight_OI, scale_O, zeros_O, 0, torch.qint8)
        packed: torch.ScriptObject = torch.ops.quantized.linear_prepack(int8_OI, None)
        return packed

    def _product(self, inputs_RI: torch.Tensor) -> torch.Tensor:
        scale_R1 = inputs_RI.abs().amax(dim=1, keepdim=True).clamp(min=_TINY)
        # With this row among the others the range that FBGEMM finds is always [-1, 1].
        range_1I = inputs_RI.new_zeros(1, self.in_features)
        range_1I[0, 0], range_1I[0, 1] = -1.0, 1.0
        within_RI = torch.cat([inputs_RI / scale_R1, range_1I])
        product_RO: torch.Tensor = torch.ops.quantized.linear_dynamic(within_RI, self._packed, False)[:-1]
        return product_RO * scale_R1


_TINY = torch.finfo(torch.float32).tiny

TWINS: Mapping[str, type[TwinLinear]] = MappingProxyType({"float16": Float16Linear, "int8": Int8Linear})


def why_no_twin(network: Network) -> str | None:
    """Why this network has no twin, in one phrase; None if it can have one."""
    if network.device.type != "cpu":
        return f"the model is on {network.device}, and these products exist on a CPU only"
    if network.dtype != torch.float32:
        return f"the model is loaded as {str(network.dtype).removeprefix('torch.')}, not as float32"
    if network.why_slow is not None:
        return network.why_slow
    if "fbgemm" not in torch.backends.quantized.supported_engines or not hasattr(torch, "quantize_per_channel"):
        return f"torch {torch.__version__} comes without the products of FBGEMM here"
    return None


def twin_bytes(network: Network, weights: str) -> int:
    """Bytes that a twin takes beside the network."""
    numbers = sum(module.weight.numel() for module in network.model.modules() if isinstance(module, nn.Linear))
    return numbers * TWINS[weights].bytes_per_weight


def twin_of(network: Network, weights: str) -> Network:
    """The network with every linear layer, the head among them, in ``weights``; it shares everything else.

    Raises ``ModelError`` where there can be none, or where it does not fit into memory.
    """
    if (why := why_no_twin(network)) is not None:
        raise ModelError(f"rollouts in {weights}: {why}; use rollout_weights 'exact'")
    wanted, spare = twin_bytes(network, weights), spare_bytes(network.device)
    if spare is not None and wanted > spare // 2:
        raise ModelError(
            f"rollouts in {weights} take {wanted // 2**20} MiB beside the model, and {spare // 2**20} MiB are free, "
            "of which half is kept for rows in flight: use rollout_weights 'exact'"
        )
    return Network(_twin(network.model, TWINS[weights]), exact=False)


def _twin(module: _Module, kind: type[TwinLinear]) -> _Module:
    if isinstance(module, nn.Linear):
        return kind(module)  # type: ignore[return-value]
    if not module._modules:
        return module
    twin = copy.copy(module)
    twin._modules = {name: None if part is None else _twin(part, kind) for name, part in module._modules.items()}
    return twin
