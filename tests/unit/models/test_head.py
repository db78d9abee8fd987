"""Log-probabilities of given tokens from hidden states whose numbers have few bits."""

from __future__ import annotations

import pytest
import torch

from elm_agent.models.head import head_logprobs, token_logprobs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_rounded_weights_are_not_rounded_themselves(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    hidden_NE = (torch.randn(5, 64) * 3).to(dtype).requires_grad_(True)
    weight_VE = torch.randn(300, 64).to(dtype)
    tokens_N = torch.arange(5) * 50
    exact_N = token_logprobs(hidden_NE.double() @ weight_VE.double().t(), tokens_N, 0.7)
    rounded_N = token_logprobs((hidden_NE @ weight_VE.t()).float(), tokens_N, 0.7)
    chosen_N = head_logprobs(hidden_NE, weight_VE, tokens_N, 0.7)
    assert chosen_N.dtype is torch.float32
    assert (chosen_N - exact_N).abs().max() < 1e-4
    assert (rounded_N - exact_N).abs().max() > 1e-3  # what the product in `dtype` would give
    chosen_N.sum().backward()
    assert hidden_NE.grad is not None
    (wanted_NE,) = torch.autograd.grad(exact_N.sum(), hidden_NE)
    torch.testing.assert_close(hidden_NE.grad, wanted_NE, rtol=0.02, atol=0.05)
