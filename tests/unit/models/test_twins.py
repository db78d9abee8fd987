"""Linear layers with rounded weights: close to the exact ones, each row by itself, the network left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from elm_agent.errors import ModelError
from elm_agent.models import twins
from elm_agent.models.decoding import Row, decode
from elm_agent.models.loading import load_pretrained
from elm_agent.models.network import Network
from elm_agent.models.twins import TWINS, twin_bytes, twin_of, why_no_twin
from elm_agent.testing.tiny import write_tiny_model


def network_of(folder: Path, architecture: str = "llama", dtype: str = "float32") -> Network:
    loaded = load_pretrained(
        str(write_tiny_model(folder, architecture=architecture)), device="cpu", dtype=dtype, offline=True
    )
    return Network(loaded.model)


@pytest.mark.parametrize(("weights", "away"), [("float16", 0.001), ("int8", 0.05)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_rounded_layer_is_close_to_the_exact_one(weights: str, away: float, bias: bool) -> None:
    torch.manual_seed(0)
    linear, inputs = nn.Linear(64, 48, bias=bias), torch.randn(3, 5, 64)
    with torch.no_grad():
        exact, rough = linear(inputs), TWINS[weights](linear)(inputs)
    assert rough.shape == exact.shape
    assert 0 < float((rough - exact).norm() / exact.norm()) < away


def test_large_products_of_8_bits_do_not_overflow() -> None:
    linear = nn.Linear(64, 16, bias=False)
    with torch.no_grad():
        linear.weight.fill_(1.0)
        product_RO = TWINS["int8"](linear)(torch.ones(3, 64))
    torch.testing.assert_close(product_RO, torch.full((3, 16), 64.0), rtol=0.01, atol=0)


@pytest.mark.parametrize("weights", list(TWINS))
def test_a_row_is_the_same_whoever_is_beside_it(weights: str) -> None:
    torch.manual_seed(0)
    linear = TWINS[weights](nn.Linear(32, 16))
    row, giant = torch.randn(1, 32), 1000 * torch.randn(1, 32)
    together = linear(torch.cat([giant, row, torch.zeros(1, 32)]))
    torch.testing.assert_close(together[1:2], linear(row), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(together[0:1], linear(giant), rtol=1e-6, atol=1e-4)
    assert torch.isfinite(together[2]).all()


@pytest.mark.parametrize(("weights", "away"), [("float16", 0.01), ("int8", 0.3)])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text"])
def test_the_twin_is_close_and_the_network_stays_what_it_was(
    tmp_path: Path, architecture: str, weights: str, away: float
) -> None:
    network = network_of(tmp_path / "m", architecture)
    before = {name: id(module) for name, module in network.model.named_modules()}
    values = {name: value.clone() for name, value in network.model.state_dict().items()}
    tokens = network.embed([40, 41, 42, 43])
    with torch.no_grad():
        _, exact = network.read([tokens])
        twin = twin_of(network, weights)
        _, rough = twin.read([tokens])
        _, again = network.read([tokens])
    assert torch.equal(exact, again)
    assert {name: id(module) for name, module in network.model.named_modules()} == before
    assert all(torch.equal(values[name], value) for name, value in network.model.state_dict().items())
    assert 0 < float((rough - exact).norm() / exact.norm()) < away
    assert not any(isinstance(module, nn.Linear) for module in twin.model.modules())
    assert twin.embedding is network.embedding


def test_where_there_is_no_twin_one_sentence_says_why(tmp_path: Path) -> None:
    for options, why in (({"architecture": "gpt2"}, "'gpt2'"), ({"dtype": "float64"}, "loaded as float64")):
        network = network_of(tmp_path / why.strip("'"), **options)
        assert why in str(why_no_twin(network))
        with pytest.raises(ModelError, match=f"{why}.*use rollout_weights 'exact'"):
            twin_of(network, "int8")


def test_the_twin_is_counted_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(tmp_path / "m")
    # Two layers of 4 x 32 x 32 (two of them half) and 3 x 32 x 64, and a head of 259 x 32.
    numbers = 2 * (3 * 32 * 32 + 3 * 32 * 64) + 259 * 32
    assert (twin_bytes(network, "int8"), twin_bytes(network, "float16")) == (numbers, 2 * numbers)
    monkeypatch.setattr(twins, "spare_bytes", lambda _: 4 * numbers - 2)
    twin_of(network, "int8")
    with pytest.raises(ModelError, match="MiB are free"):
        twin_of(network, "float16")


def test_rows_on_a_twin_say_with_which_probability_they_drew_each_token(tmp_path: Path) -> None:
    twin = twin_of(network_of(tmp_path / "m"), "int8")
    text = twin.embed([40, 41, 42])
    rows = [Row(max_new_tokens=4), Row(max_new_tokens=4, temperature=0.5, seed=1)]
    with torch.no_grad():
        prefix, logits_1V = twin.read([text])
        decode(twin, prefix, logits_1V, rows, ())
        for row in rows:
            whole = twin.model(inputs_embeds=torch.cat([text, twin.embed(row.tokens)])[None]).logits[0, 2:-1]
            chances = (whole / (row.temperature or 1.0)).log_softmax(-1)
            expected = [float(chances[place, token]) for place, token in enumerate(row.tokens)]
            assert row.sampler_logprobs == pytest.approx(expected, abs=1e-3)
