"""Rows longer than a layer's window, and heads that share no keys: the quick way against full passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from elm_agent.models.decoding import Decoder, Row
from elm_agent.models.loading import load_pretrained
from elm_agent.models.network import Network
from elm_agent.models.step import window_of
from elm_agent.testing.tiny import write_tiny_model

ROWS = [[3, 4, 5, 6, 30, 31, 32, 33, 34], [3, 4, 5, 6], [3, 4, 7, 8, 9, 10], [60]]
PROMPT = list(range(40, 54))
KINDS = {  # (architecture, key heads of 4, settings)
    "mistral, all layers": ("mistral", 2, {"sliding_window": 5}),
    "gemma, one layer": (
        "gemma3_text",
        2,
        {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gemma, all layers": (
        "gemma3_text",
        2,
        {"sliding_window": 7, "layer_types": ["sliding_attention", "sliding_attention"]},
    ),
    "llama, no shared keys": ("llama", 4, {}),
    "qwen3, no shared keys": ("qwen3", 4, {}),
    "llama, one key head": ("llama", 1, {}),
}


@pytest.fixture(scope="module")
def open_network(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Network]:
    def opened(kind: str) -> Network:
        architecture, kv_heads, settings = KINDS[kind]
        folder: Path = tmp_path_factory.mktemp(architecture)
        write_tiny_model(folder, architecture=architecture, kv_heads=kv_heads)
        config = json.loads((folder / "config.json").read_text()) | settings
        (folder / "config.json").write_text(json.dumps(config))
        network = Network(load_pretrained(str(folder), device="cpu", dtype="float64", offline=True).model)
        assert network.why_slow is None
        windows = {window_of(network.model, layer) for layer in network.model.model.layers}
        assert bool(windows - {None}) == ("sliding_window" in settings)
        return network

    return opened


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sparing", [False, True])
def test_completions_have_the_numbers_and_the_gradient_of_full_passes(
    open_network: Callable[[str], Network], kind: str, sparing: bool
) -> None:
    network = open_network(kind)
    embeds_TE = network.embed(PROMPT).clone().requires_grad_(True)
    prefix, _ = network.read([embeds_TE])
    longest = max(map(len, ROWS))
    assert network.reads_trees(prefix, longest) == kind.endswith(("keys", "head"))
    tokens_BT, mask_BT = torch.zeros(len(ROWS), longest, dtype=torch.long), torch.zeros(len(ROWS), longest).bool()
    weights_BT = torch.rand(mask_BT.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for index, row in enumerate(ROWS):
        tokens_BT[index, : len(row)], mask_BT[index, : len(row)] = torch.tensor(row), True
    network._sparing = sparing
    found_BT = network.logprobs(prefix, 20, tokens_BT, mask_BT, 0.7)
    (found_TE,) = torch.autograd.grad((found_BT * weights_BT).sum(), embeds_TE)

    total = torch.zeros((), dtype=torch.float64)
    for index, row in enumerate(ROWS):
        whole_TE = torch.cat([embeds_TE, network.embed([20, *row])])
        logits_TV = network.model(inputs_embeds=whole_TE[None], use_cache=False).logits[0] / 0.7
        places = torch.arange(len(row))
        expected_T = logits_TV[len(PROMPT) + places].log_softmax(-1)[places, torch.tensor(row)]
        torch.testing.assert_close(found_BT[index, : len(row)], expected_T, rtol=0, atol=1e-6)
        total = total + (expected_T * weights_BT[index, : len(row)]).sum()
    (expected_TE,) = torch.autograd.grad(total, embeds_TE)
    assert float(expected_TE.norm()) > 1e-6
    assert float((found_TE - expected_TE).norm() / expected_TE.norm()) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_has_the_numbers_of_full_passes(open_network: Callable[[str], Network], kind: str) -> None:
    """Rows of several lengths, the pads of the shorter ones among them."""
    network, texts = open_network(kind), [PROMPT, [70, 71], PROMPT[:6]]
    rows = [Row(max_new_tokens=12, temperature=1.0, seed=seed) for seed in range(3)]
    with torch.no_grad():
        decoder = Decoder(network, ())
        decoder.join(*network.read([network.embed(text) for text in texts]), rows)
        while decoder.rows:
            decoder.step()
        for text, row in zip(texts, rows, strict=True):
            logits_TV = network.model(torch.tensor([text + row.tokens]), use_cache=False).logits[0]
            places = torch.arange(len(row.tokens))
            expected_T = logits_TV[len(text) - 1 + places].log_softmax(-1)[places, torch.tensor(row.tokens)]
            assert row.logprobs == pytest.approx(expected_T.tolist(), abs=1e-6)
