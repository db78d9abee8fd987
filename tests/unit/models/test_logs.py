"""Stored states of a text stand for the text: the same logits as when it is read, wherever it stood."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from elm_agent.errors import InputError, ModelError
from elm_agent.models.engine import LocalModel
from elm_agent.models.loading import load_pretrained
from elm_agent.models.logs import check_logs, log_of
from elm_agent.models.network import Network, positions_of
from elm_agent.models.reading import Reader
from elm_agent.models.step import moved_back
from elm_agent.testing.tiny import write_tiny_model

KNOWN = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text"]
CHAT = [{"role": "user", "content": "How many legs has a spider?"}]
TEXT = "A spider has eight legs: 8."
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LocalModel]:
    made: dict[str, LocalModel] = {}

    def make(architecture: str) -> LocalModel:
        if architecture not in made:
            folder = write_tiny_model(tmp_path_factory.mktemp(architecture), architecture=architecture)
            loaded = load_pretrained(str(folder), device="cpu", dtype="float64", offline=True)
            made[architecture] = LocalModel(loaded.model, loaded.tokenizer, loaded.fingerprint)
        return made[architecture]

    return make


def states_at(network: Network, ids: list[int], first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (L, H, V, D) of tokens that see only themselves, read at positions from ``first``."""
    prefix = network.begin()
    positions = torch.arange(first, first + len(ids))[None]
    with torch.no_grad():
        network.model(torch.tensor([ids]), position_ids=positions, past_key_values=prefix.cache, use_cache=True)
    keys, values = zip(*prefix.states(), strict=True)
    return torch.cat(keys), torch.cat(values)


@pytest.mark.parametrize("architecture", KNOWN)
def test_keys_that_were_moved_are_those_of_the_new_positions(
    architecture: str, tiny_network: Callable[[str], Network]
) -> None:
    network = tiny_network(architecture)
    there, values_there = states_at(network, [65, 66, 67, 68], 37)
    here, values_here = states_at(network, [65, 66, 67, 68], 0)
    assert not torch.allclose(there, here, atol=1e-3)
    torch.testing.assert_close(moved_back(network.model, there, 37), here, rtol=0, atol=1e-5)
    torch.testing.assert_close(values_there, values_here, rtol=0, atol=1e-5)


def test_a_scaled_rotation_is_moved_without_its_scale(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m")
    model = load_pretrained(str(folder), device="cpu", dtype="float64", offline=True).model
    model.config.rope_parameters = YARN
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    network = Network(model)
    assert network.why_slow is None
    assert float(model.model.rotary_emb.attention_scaling) > 1.05
    there, _ = states_at(network, [65, 66, 67], 21)
    here, _ = states_at(network, [65, 66, 67], 0)
    torch.testing.assert_close(moved_back(model, there, 21), here, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", KNOWN)
def test_a_log_without_anything_before_it_is_the_text_itself(
    architecture: str, make: Callable[[str], LocalModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(architecture)
    network, asked = model.network, model.encode(CHAT)
    monkeypatch.setattr(model, "encode", lambda _messages: ())
    log, read = log_of(model, [], TEXT, memory_id="m")
    ids = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert (read, log.virtual_tokens, log.memory_id) == (len(ids), len(ids), "m")
    with torch.no_grad():
        _, stored = network.read([network.embed(asked)], Reader(network).after(log))
        _, plain = network.read([network.embed([*ids, *asked])])
    torch.testing.assert_close(stored, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", KNOWN)
def test_a_log_at_its_old_place_goes_on_as_if_all_had_been_read(
    architecture: str, make: Callable[[str], LocalModel]
) -> None:
    """The states of the answer, moved back behind those of its question."""
    model = make(architecture)
    network, prompt = model.network, model.encode(CHAT)
    ids = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    log, read = log_of(model, CHAT, TEXT, memory_id="m")
    assert read == len(prompt) + len(ids)
    with torch.no_grad():
        whole, _ = network.read([network.embed([*prompt, *ids])])
        before, _ = network.read([network.embed(prompt)])
        everything = []
        for layer, ((keys, values), (old_keys, _)) in enumerate(zip(before.states(), whole.states(), strict=True)):
            moved = moved_back(network.model, log.keys_LHVD.double(), -len(prompt))[layer][None]
            torch.testing.assert_close(moved, old_keys[:, :, len(prompt) :], rtol=0, atol=1e-4)
            joined = log.values_LHVD.double()[layer][None]
            everything.append((torch.cat([keys, moved], dim=2), torch.cat([values, joined], dim=2)))
        _, stored = network.read([network.embed([70, 71])], network.begin(everything))
        _, plain = network.read([network.embed([*prompt, *ids, 70, 71])])
    torch.testing.assert_close(stored, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", KNOWN)
def test_a_log_with_all_before_it_as_its_anchor_is_the_whole_text(
    architecture: str, make: Callable[[str], LocalModel]
) -> None:
    model = make(architecture)
    network, prompt = model.network, model.encode(CHAT)
    ids = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    log, _ = log_of(model, CHAT, TEXT, memory_id="m", anchor=len(prompt))
    with torch.no_grad():
        _, stored = network.read([network.embed([70, 71])], Reader(network).after(log))
        _, plain = network.read([network.embed([*prompt, *ids, 70, 71])])
    torch.testing.assert_close(stored, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", KNOWN)
def test_an_anchor_stands_first_and_the_text_right_behind_it(
    architecture: str, make: Callable[[str], LocalModel]
) -> None:
    model = make(architecture)
    whole, bare = (log_of(model, CHAT, TEXT, memory_id="m", anchor=anchor)[0] for anchor in (1, 0))
    assert whole.virtual_tokens == bare.virtual_tokens + 1
    first, _ = states_at(model.network, list(model.encode(CHAT)[:1]), 0)
    torch.testing.assert_close(whole.keys_LHVD[:, :, :1].double(), first, rtol=0, atol=1e-4)
    behind = moved_back(model.network.model, whole.keys_LHVD[:, :, 1:].double(), 1)
    torch.testing.assert_close(behind, bare.keys_LHVD.double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(whole.values_LHVD[:, :, 1:], bare.values_LHVD)


def test_a_question_follows_its_log_without_a_gap(make: Callable[[str], LocalModel]) -> None:
    model = make("llama")
    log, _ = log_of(model, CHAT, TEXT, memory_id="m")
    prefix, _ = model.network.read([model.network.embed([65, 66])], Reader(model.network).after(log))
    assert positions_of(prefix.mask_BL)[0, -2:].tolist() == [log.virtual_tokens, log.virtual_tokens + 1]


def test_what_cannot_be_kept_is_refused(make: Callable[[str], LocalModel]) -> None:
    with pytest.raises(ModelError, match="cannot be moved to other positions: its architecture 'gpt2'"):
        check_logs(make("gpt2"))
    with pytest.raises(InputError, match="no token"):
        log_of(make("llama"), CHAT, "", memory_id="m")
    with pytest.raises(InputError, match="more than the model's context of 1024"):
        log_of(make("llama"), CHAT, "a" * 1000, memory_id="m")
