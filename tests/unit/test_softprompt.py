"""The tensor as bytes: same prompt, same bytes; anything else is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save

from elm_agent.errors import TensorCorrupt
from elm_agent.softprompt import SoftPrompt, content_digest, from_bytes, to_bytes

PROMPT = torch.arange(6, dtype=torch.float32).view(2, 3)


def test_bytes_round_trip_and_are_the_same_every_time() -> None:
    data = to_bytes(PROMPT)
    assert torch.equal(from_bytes(data, shape=(2, 3), memory_id="mem_a").prompt_VE, PROMPT)
    assert len({content_digest(to_bytes(PROMPT.clone().requires_grad_(True))) for _ in range(5)}) == 1
    assert content_digest(data).startswith("sha256:")
    assert content_digest(to_bytes(PROMPT + 1)) != content_digest(data)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"not a tensor", "not a safetensors file"),
        (to_bytes(PROMPT)[:-4], "not a safetensors file"),
        (save({"other": PROMPT}), "one tensor named 'prompt'"),
        (save({"prompt": PROMPT, "more": PROMPT + 1}), "one tensor named 'prompt'"),
        (save({"prompt": PROMPT.T.contiguous()}), r"shape \(2, 3\)"),
        (save({"prompt": PROMPT.double()}), "is float32"),
        (save({"prompt": PROMPT * float("nan")}), "is finite"),
    ],
)
def test_other_bytes_are_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(TensorCorrupt, match=sentence):
        from_bytes(data, shape=(2, 3))


@pytest.mark.parametrize("tensor", [torch.zeros(3), torch.zeros(0, 3), torch.zeros(2, 3, dtype=torch.float16)])
def test_other_tensors_are_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(TensorCorrupt):
        SoftPrompt(tensor)
