"""Linear layers in 8 bits: close to the exact ones, each row by itself, and the network left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from elm_agent.errors import ModelError
from elm_agent.models import int8
from elm_agent.models.int8 import Int8Linear, int8_bytes, int8_twin, why_not_int8
from elm_agent.models.loading import load_pretrained
from elm_agent.models.network import Network
from elm_agent.testing.tiny import write_tiny_model


def network_of(folder: Path, architecture: str = "llama", dtype: str = "float32") -> Network:
    loaded = load_pretrained(
        str(write_tiny_model(folder, architecture=architecture)), device="cpu", dtype=dtype, offline=True
    )
    return Network(loaded.model)


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_in_8_bits_is_close_to_the_exact_one(bias: bool) -> None:
    torch.manual_seed(0)
    linear, inputs = nn.Linear(64, 48, bias=bias), torch.randn(3, 5, 64)
    with torch.no_grad():
        exact, rough = linear(inputs), Int8Linear(linear)(inputs)
    assert rough.shape == exact.shape
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.05


def test_a_row_is_the_same_whoever_is_beside_it() -> None:
    torch.manual_seed(0)
    linear = Int8Linear(nn.Linear(32, 16))
    row, giant = torch.randn(1, 32), 1000 * torch.randn(1, 32)
    together = linear(torch.cat([giant, row, torch.zeros(1, 32)]))
    assert torch.equal(together[1:2], linear(row))
    assert torch.equal(together[0:1], linear(giant))
    assert torch.isfinite(together[2]).all()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text"])
def test_the_twin_is_close_and_the_network_stays_what_it_was(tmp_path: Path, architecture: str) -> None:
    network = network_of(tmp_path / "m", architecture)
    before = {name: id(module) for name, module in network.model.named_modules()}
    weights = {name: value.clone() for name, value in network.model.state_dict().items()}
    tokens = network.embed([40, 41, 42, 43])
    with torch.no_grad():
        _, exact = network.read([tokens])
        twin = int8_twin(network)
        _, rough = twin.read([tokens])
        _, again = network.read([tokens])
    assert torch.equal(exact, again)
    assert {name: id(module) for name, module in network.model.named_modules()} == before
    assert all(torch.equal(weights[name], value) for name, value in network.model.state_dict().items())
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.3
    assert not any(isinstance(module, nn.Linear) for module in twin.model.modules())
    assert twin.embedding is network.embedding


def test_where_there_is_no_twin_one_sentence_says_why(tmp_path: Path) -> None:
    for options, why in (({"architecture": "gpt2"}, "'gpt2'"), ({"dtype": "float64"}, "loaded as float64")):
        network = network_of(tmp_path / why.strip("'"), **options)
        assert why in str(why_not_int8(network))
        with pytest.raises(ModelError, match=f"{why}.*use rollout_weights 'exact'"):
            int8_twin(network)


def test_the_twin_is_counted_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(tmp_path / "m")
    # Two layers of 4 x 32 x 32 (two of them half) and 3 x 32 x 64, and a head of 259 x 32.
    assert int8_bytes(network) == 2 * (3 * 32 * 32 + 3 * 32 * 64) + 259 * 32
    monkeypatch.setattr(int8, "spare_bytes", lambda _: 2 * int8_bytes(network) - 2)
    with pytest.raises(ModelError, match="MiB are free"):
        int8_twin(network)
