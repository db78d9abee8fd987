"""Thin linear layers give what plain ones give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from elm_agent.models.skinny import SkinnyLinear, use_skinny_linears


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 16, 32, 33])
@pytest.mark.parametrize("outputs", [5, 12])
@pytest.mark.parametrize("bias", [True, False])
def test_values_are_those_of_a_plain_linear_layer(rows: int, outputs: int, bias: bool) -> None:
    layer = nn.Linear(7, outputs, bias=bias)
    rows_in = torch.randn(rows, 1, 7)
    expected = layer(rows_in).detach()
    use_skinny_linears(nn.Sequential(layer))
    assert type(layer) is SkinnyLinear
    with torch.no_grad():
        torch.testing.assert_close(layer(rows_in), expected)


def test_gradients_flow_as_before() -> None:
    layer = nn.Linear(7, 5).requires_grad_(False)
    use_skinny_linears(nn.Sequential(layer))
    rows_in = torch.randn(2, 7, requires_grad=True)
    layer(rows_in).sum().backward()
    assert rows_in.grad is not None
    torch.testing.assert_close(rows_in.grad, layer.weight.sum(0).expand(2, 7))
