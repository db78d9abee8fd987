"""Families that nothing here knows of: layers with a state of their own, attention without SDPA. Slow, and exact."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from elm_agent import models
from elm_agent.errors import InputError
from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.models.network import Network
from elm_agent.models.quiet import quiet
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Recipe
from elm_agent.tasks import get_task
from elm_agent.testing.tiny import tiny_tokenizer, write_tiny_model
from elm_agent.training import GrpoTrainer

# Layers of two kinds each; Gemma 2's window is narrower than the rows.
FAMILIES: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"],
        **{f"linear_num_{kind}_heads": 2 for kind in ("key", "value")},
        **{f"linear_{kind}_head_dim": 8 for kind in ("key", "value")},
    },
    "gemma2": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6},
}
REREAD = ["lfm2", "qwen3_5_text"]
# Norms and rotations are in float32 inside; in float64 attention without SDPA cannot have pads.
EXACTNESS = {
    ("lfm2", "float64"): 1e-10,
    ("qwen3_5_text", "float64"): 1e-5,
    ("gemma2", "float32"): 1e-4,
    ("gemma2", "float64"): 1e-5,
}
ROWS = [[3, 4, 5], [6], [3, 4, 7, 8]]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            write_family(made[family], family)
        return made[family]

    return folder_of


def write_family(folder: Path, family: str) -> None:
    """A tiny random model with the tokenizer of the others."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    specials = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        initializer_range=0.2,
        **{**sizes, **heads, **specials, **FAMILIES[family]},
    )
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.fixture(scope="module", params=EXACTNESS, ids="-".join)
def network(request: pytest.FixtureRequest, folder_of: Callable[[str], Path]) -> Network:
    family, dtype = request.param
    network = Network(load_pretrained(str(folder_of(family)), device="cpu", dtype=dtype, offline=True).model)
    assert (network.why_reread is None) == (dtype == "float32")
    return network


def exactness_of(network: Network) -> float:
    return EXACTNESS[network.model.config.model_type, str(network.dtype).removeprefix("torch.")]


def logits_alone(network: Network, ids: list[int]) -> torch.Tensor:
    logits_TV: torch.Tensor = network.model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits_TV


def test_rows_that_are_read_together_are_what_they_would_be_alone(network: Network) -> None:
    exactness, texts = exactness_of(network), [list(range(40, 60)), [70, 71, 3], [5, 6]]
    with torch.no_grad():
        prefix, logits_BV = network.read([network.embed(text) for text in texts])
        for row, text in enumerate(texts):
            torch.testing.assert_close(logits_BV[row], logits_alone(network, text)[-1], rtol=0, atol=exactness)
        prefix.select(torch.tensor([1, 2]))
        texts = texts[1:]
        for tokens in ([8, 9], [10]):
            texts = [[*text, *tokens] for text in texts]
            logits_BTV = network.extend(prefix, torch.tensor([tokens, tokens]))
            for row, text in enumerate(texts):
                alone_TV = logits_alone(network, text)[-len(tokens) :]
                torch.testing.assert_close(logits_BTV[row], alone_TV, rtol=0, atol=exactness)


def test_completions_have_the_numbers_and_the_gradient_of_full_passes(network: Network) -> None:
    exactness = exactness_of(network)
    embeds_TE = network.embed(range(40, 52)).clone().requires_grad_(True)
    prefix, _ = network.read([embeds_TE])
    shared, roots = prefix.leaf()
    tokens_BT, mask_BT = torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 4, dtype=torch.bool)
    for index, row in enumerate(ROWS):
        tokens_BT[index, : len(row)], mask_BT[index, : len(row)] = torch.tensor(row), True
    found_BT = network.logprobs(shared, 20, tokens_BT, mask_BT, 0.7)
    torch.autograd.backward(found_BT.sum())
    pulled = [(root, leaf.grad) for root, leaf in roots if leaf.grad is not None]
    torch.autograd.backward([root for root, _ in pulled], [gradient for _, gradient in pulled])
    again_TE, total = embeds_TE.detach().clone().requires_grad_(True), torch.zeros(())
    for index, row in enumerate(ROWS):
        whole_TE = torch.cat([again_TE, network.embed([20, *row])])
        logits_TV = network.model(inputs_embeds=whole_TE[None], use_cache=False).logits[0] / 0.7
        expected_T = logits_TV[12 : 12 + len(row)].log_softmax(-1)[torch.arange(len(row)), torch.tensor(row)]
        torch.testing.assert_close(found_BT[index, : len(row)], expected_T, rtol=0, atol=exactness)
        total = total + expected_T.sum()
    (expected_TE,) = torch.autograd.grad(total, again_TE)
    assert embeds_TE.grad is not None
    assert float((embeds_TE.grad - expected_TE).norm() / expected_TE.norm()) < exactness


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, folder_of: Callable[[str], Path]) -> Iterator[LocalModel]:
    loaded = load_pretrained(str(folder_of(request.param)), device="cpu", dtype="float64", offline=True)
    model = LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint, ignore_end=True)
    yield model
    model.close()


def test_a_memory_is_learnt_and_answers(model: LocalModel) -> None:
    recipe = Recipe(rollouts=3, steps=2, max_new_tokens=4, virtual_tokens=3, learning_rate=0.05, beta=0.1)
    trained = GrpoTrainer(model, get_task("text")).train("What is 2 plus 3?", recipe=recipe, seed=0)
    assert all(record.grad_norm > 0 for record in trained.curve)
    chats = [[{"role": "user", "content": text}] for text in ("hello", "What is 2 plus 3?")]
    requests = [GenerationRequest(prompt_ids=model.encode(chat), max_new_tokens=5) for chat in chats]
    requests.append(GenerationRequest(prompt_ids=requests[0].prompt_ids, prefix=trained.prompt, max_new_tokens=5))
    together = [generation.token_ids for generation in model.generate(requests)]
    assert together == [model.generate([request])[0].token_ids for request in requests]
    text = list(requests[0].prompt_ids)
    for token in together[0]:
        assert token == int(logits_alone(model.network, text)[-1].argmax())
        text.append(token)


@pytest.mark.parametrize("family", REREAD)
def test_memories_of_keys_and_values_are_refused(folder_of: Callable[[str], Path], family: str) -> None:
    loaded = load_pretrained(str(folder_of(family)), device="cpu", dtype="float64", offline=True)
    model = LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint)
    recipe = Recipe(rollouts=2, steps=1, max_new_tokens=4, virtual_tokens=3, parameterisation="prefix")
    with pytest.raises(InputError, match="keys and values in every layer: use 'soft_prompt'"):
        GrpoTrainer(model, get_task("text")).train("What is 2 plus 3?", recipe=recipe, seed=0)
    model.close()


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("lfm2", r"'lfm2' is not among .*; its layers keep more than keys and values .*: rows are read anew"),
        ("gemma2", r"'gemma2' is not among .*; transformers has no SDPA for it, so attention is 'eager'"),
    ],
)
def test_what_is_slower_is_said_once(
    folder_of: Callable[[str], Path], family: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "elm_agent"):
        models.load(str(folder_of(family)), device="cpu", offline=True).close()
    (said,) = [record.getMessage() for record in caplog.records if record.name == "elm_agent.models"]
    assert said.startswith("model ")
    assert "correct but slower" in said
    assert re.search(why, said)


def test_what_has_sdpa_is_loaded_with_it(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text()) | {"attn_implementation": "eager"}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load_pretrained(str(folder), device="cpu", offline=True)
    assert loaded.model.config._attn_implementation == "sdpa"
