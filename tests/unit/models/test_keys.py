"""Pooling of attention heads by hand, and the layerwise score against the definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from elm_agent.errors import ModelError
from elm_agent.models import keys
from elm_agent.models.network import Network


def test_query_heads_are_averaged_into_the_key_head_that_serves_them() -> None:
    # Two tokens, four query heads of width 1 for two key heads: means over tokens are 2, 3, 4, 5.
    states_TD = torch.tensor([[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0]])
    assert keys.pool_heads(states_TD, 4, 2, keep=True).tolist() == [2.5, 4.5]
    assert keys.pool_heads(states_TD, 4, 2, keep=False).tolist() == [3.5]
    assert keys.pool_heads(states_TD, 2, 2, keep=True).tolist() == [2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("kv_heads", ["mean", "keep"])
def test_the_inner_product_is_the_mean_over_layers_of_cosines(
    tiny_network: Callable[[str], Network], kv_heads: str
) -> None:
    network = tiny_network("llama")
    torch.manual_seed(0)
    prompt_VE = torch.randn(5, network.width)
    text_TE = network.embed([65, 66, 67])
    score = float(
        keys.kv_query(network, text_TE, kv_heads=kv_heads) @ keys.kv_key(network, prompt_VE, kv_heads=kv_heads)
    )

    hidden = network.model(inputs_embeds=prompt_VE.to(network.dtype)[None], output_hidden_states=True).hidden_states
    asked = network.model(inputs_embeds=text_TE[None], output_hidden_states=True).hidden_states
    cosines = []
    for index, layer in enumerate(network.model.model.layers):
        key = layer.self_attn.k_proj(layer.input_layernorm(hidden[index]))[0].mean(0).view(2, 8)
        query = layer.self_attn.q_proj(layer.input_layernorm(asked[index]))[0].mean(0).view(2, 2, 8).mean(1)
        if kv_heads == "mean":
            key, query = key.mean(0), query.mean(0)
        cosines.append(torch.cosine_similarity(key.flatten(), query.flatten(), dim=0))
    assert score == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-5)


def test_an_architecture_without_separate_projections_has_no_kv_keys(tiny_network: Callable[[str], Network]) -> None:
    network = tiny_network("gpt2")
    assert not keys.has_kv_keys(network)
    with pytest.raises(ModelError, match="use key='input'"):
        keys.kv_key(network, torch.randn(2, network.width), kv_heads="mean")


def test_a_zero_key_is_refused() -> None:
    with pytest.raises(ModelError, match="direction"):
        keys.input_key(torch.zeros(2, 4))
