"""Memories that are no soft prompts: their gradients, what they draw and become, their keys, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slow_reference import open_model
from transformers import DynamicCache

from elm_agent.adapters import Kept, KeyValues, LowRank, Weights, from_bytes, to_bytes
from elm_agent.errors import InputError, JobCancelled, ModelMismatch
from elm_agent.models import keys
from elm_agent.models.decoding import Decoder, Row
from elm_agent.models.engine import LocalModel
from elm_agent.models.reading import Reader
from elm_agent.protocols import GenerationRequest, Trained
from elm_agent.records import KeyKind, Recipe
from elm_agent.tasks import get_task
from elm_agent.training import GrpoTrainer, grpo, update
from elm_agent.training.parameterisations import PARAMETERISATIONS, Learning

QUESTION = "What is 2 plus 3?"
COMPLETIONS = [[40, 41, 42, 43, 44, 45], [50, 51], [60, 61, 62], [70]]
ADVANTAGES = torch.tensor([0.5, -0.5, 0.5, -0.5], dtype=torch.float64)
RECIPE = Recipe(
    rollouts=4, steps=2, max_new_tokens=6, virtual_tokens=5, learning_rate=0.02, temperature=0.8, lora_rank=3
)
KINDS = {kind: replace(RECIPE, parameterisation=kind) for kind in ("prefix", "lora", "full")}
KEPT = ["prefix", "lora"]
EXACTNESS = {"gpt2": 1e-10, "llama": 1e-5}  # of RMS norms, which compute in float32 inside


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    """In float64, of which one family is decoded quickly, with grouped queries, and one by transformers."""
    model = open_model(tmp_path_factory.mktemp("wide"), architecture=request.param, dtype="float64")
    yield model
    model.close()


def train(model: LocalModel, recipe: Recipe, seed: int = 3, **options: Any) -> Trained:
    return GrpoTrainer(model, get_task("text")).train(QUESTION, recipe=recipe, seed=seed, **options)


def kept(model: LocalModel, kind: str, seed: int = 3) -> Kept:
    """A memory of this kind, some way from its beginning."""
    memory = begun(model, kind, seed).kept()
    assert not isinstance(memory, Weights)
    return memory


def begun(model: LocalModel, kind: str, seed: int = 3) -> Learning:
    """Where B is no longer zero, as then A would have no gradient."""
    memory = PARAMETERISATIONS[kind](model, QUESTION, KINDS[kind], seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in memory.parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return memory


def prompt_ids(model: LocalModel) -> tuple[int, ...]:
    return model.encode(get_task("text").messages(QUESTION))


def request(model: LocalModel, **options: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt_ids": prompt_ids(model), "max_new_tokens": 8, **options})


# --- the gradient ---------------------------------------------------------------------------------------------


def merged(network: torch.nn.Module, matrices: dict[str, torch.Tensor], scale: float) -> torch.nn.Module:
    """A copy with W + scale * B A for W, in whose pass autograd finds A and B."""
    merged = copy.deepcopy(network)
    turned = network.config.model_type == "gpt2"  # whose matrices stand the other way round
    layers = "transformer.h" if turned else "model.layers"
    for name in {name[:-2] for name in matrices}:
        for layer, (down, up) in enumerate(zip(matrices[f"{name}.A"], matrices[f"{name}.B"], strict=True)):
            module = merged.get_submodule(f"{layers}.{layer}.{name}")
            weight = module.weight.detach() + scale * ((up @ down).t() if turned else up @ down)
            del module.weight
            module.weight = weight
    return merged


def slow_loss(model: LocalModel, memory: Learning, recipe: Recipe) -> torch.Tensor:
    """METHOD 1d by transformers alone, completion by completion, token by token, a full pass for each."""
    base, asked = model.network.model, list(prompt_ids(model))
    network, states = base, None
    if recipe.parameterisation == "lora":
        network = merged(base, memory.matrices, recipe.lora_scale)  # type: ignore[attr-defined]
    elif recipe.parameterisation == "full":
        network = memory.network.model
    else:
        states = list(zip(*memory.parameters, strict=True))
    total = torch.zeros((), dtype=torch.float64)
    for completion, advantage in zip(COMPLETIONS, ADVANTAGES, strict=True):
        cache = DynamicCache()
        for layer, pair in enumerate(states or ()):
            cache.update(pair[0][None], pair[1][None], layer)
        ids = torch.tensor([asked + completion])
        logits = network(input_ids=ids, past_key_values=cache).logits[0] / recipe.temperature
        with torch.no_grad():
            reference = base(input_ids=ids).logits[0] / recipe.temperature
        for t, token in enumerate(completion):
            new = logits[len(asked) + t - 1].log_softmax(-1)[token]
            ref = reference[len(asked) + t - 1].log_softmax(-1)[token]
            total = total - (new - new.detach()).exp() * advantage
            total = total + recipe.beta * ((ref - new).exp() - (ref - new) - 1)
    return total / (len(COMPLETIONS) * recipe.max_new_tokens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token_budget", [1024, 8])
def test_the_gradient_is_that_of_the_slow_reference(wide: LocalModel, kind: str, token_budget: int) -> None:
    recipe, asked = replace(KINDS[kind], beta=0.3), prompt_ids(wide)
    memory = begun(wide, kind)
    expected = slow_loss(wide, memory, recipe)
    gradients = torch.autograd.grad(expected, memory.parameters)

    rows = [Row(max_new_tokens=6, tokens=tokens) for tokens in COMPLETIONS]
    with torch.no_grad():
        reference, _ = wide.network.read([wide.network.embed(asked[:-1])])
    pull = update.backward(
        memory.network,
        grpo.read_question(memory, asked)[0],
        reference,
        asked[-1],
        rows,
        ADVANTAGES,
        recipe,
        token_budget=token_budget,
    )
    exactness = EXACTNESS[wide.network.model.config.model_type]
    assert pull.loss == pytest.approx(float(expected.detach()), rel=exactness)
    for parameter, gradient in zip(memory.parameters, gradients, strict=True):
        assert parameter.grad is not None
        assert float(gradient.norm()) > 1e-9
        assert float((parameter.grad - gradient).norm() / gradient.norm()) < exactness
    assert all(parameter.grad is None for parameter in wide.network.model.parameters())


def test_a_finite_difference_is_the_gradient(wide: LocalModel) -> None:
    """Another way round than autograd: the log-probability of a completion, one number of the memory moved."""
    asked = prompt_ids(wide)
    for kind in KINDS:
        memory = begun(wide, kind)

        def logprob(memory: Learning = memory) -> torch.Tensor:
            tokens_BT, mask_BT = update.completions(COMPLETIONS[:1], wide.network.device)
            prefix, _ = memory.read(asked[:-1])
            return memory.network.logprobs(prefix, asked[-1], tokens_BT, mask_BT, 1.0).sum()

        logprob().backward()  # type: ignore[no-untyped-call]
        parameter = memory.parameters[-1]
        assert parameter.grad is not None
        place = int(parameter.grad.abs().argmax())
        with torch.no_grad():
            parameter.view(-1)[place] += 1e-3
            above = logprob()
            parameter.view(-1)[place] -= 2e-3
            below = logprob()
        assert float((above - below) / 2e-3) == pytest.approx(float(parameter.grad.view(-1)[place]), rel=1e-3)


# --- the training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_and_says_what_was_trained(wide: LocalModel, kind: str) -> None:
    before = copy.deepcopy(wide.network.model.state_dict())
    trained = train(wide, replace(KINDS[kind], beta=0.01))
    after = wide.network.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert len(trained.curve) == 2
    assert trained.curve[0].loss == pytest.approx(0.0, abs=1e-12) or kind == "prefix"  # lora, full: KL is 0 at first
    layers, width = 2, 32
    expected = {
        "prefix": 2 * layers * 5 * width // (2 if wide.network.model.config.model_type == "llama" else 1),
        "full": sum(parameter.numel() for parameter in wide.network.model.parameters()),
        "lora": sum(
            len(modules) * 3 * sum(modules[0].weight.shape)  # type: ignore[union-attr,arg-type]
            for modules in wide.network.projections.values()
        ),
    }[kind]
    assert trained.parameters == expected
    assert trained.nbytes == expected * (8 if kind == "full" else 4)
    assert trained.seconds_per_step == pytest.approx(sum(record.seconds for record in trained.curve) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_imitation_makes_the_greedy_completion_likelier(wide: LocalModel, kind: str) -> None:
    rate = 0.05 if kind == "prefix" else 0.005
    trained = train(wide, replace(KINDS[kind], objective="sft_greedy", steps=12, learning_rate=rate))
    assert trained.curve[-1].loss < trained.curve[0].loss - 0.3  # nats a token


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_memory(wide: LocalModel, kind: str) -> None:
    one, again, other = (train(wide, KINDS[kind], seed) for seed in (3, 3, 4))
    same = {name: torch.equal(tensor, again.prompt.tensors[name]) for name, tensor in one.prompt.tensors.items()}
    assert all(same.values())
    assert [rollout.text for rollout in one.rollouts] == [rollout.text for rollout in again.rollouts]
    assert [rollout.text for rollout in one.rollouts] != [rollout.text for rollout in other.rollouts]


def test_memories_of_all_kinds_become_the_same_alone_and_together(wide: LocalModel) -> None:
    recipes = [RECIPE, *KINDS.values(), KINDS["lora"]]
    alone = [train(wide, recipe, seed) for seed, recipe in enumerate(recipes)]
    with ThreadPoolExecutor(len(recipes)) as pool:
        together = list(pool.map(lambda n: train(wide, recipes[n], n), range(len(recipes))))
    for one, other in zip(alone, together, strict=True):
        assert [rollout.text for rollout in one.rollouts] == [rollout.text for rollout in other.rollouts]
        for name, tensor in one.prompt.tensors.items():
            torch.testing.assert_close(other.prompt.tensors[name], tensor, rtol=0, atol=1e-5)


def test_rollouts_are_drawn_from_the_memory(wide: LocalModel) -> None:
    """Log-probabilities of the rollouts are those that the update begins with: for each kind in its own way."""
    asked = prompt_ids(wide)
    for kind in KINDS:
        memory = begun(wide, kind)
        prefix, start = grpo.read_question(memory, asked)
        rows = wide.sample(start, [Row(max_new_tokens=6, temperature=1.0, seed=n) for n in range(3)], lambda: False)
        tokens_BT, mask_BT = update.completions([row.tokens for row in rows], wide.network.device)
        found = memory.network.logprobs(prefix, asked[-1], tokens_BT, mask_BT, 1.0)
        for row, logprobs in zip(rows, found.tolist(), strict=True):
            assert row.logprobs == pytest.approx(logprobs[: len(row.tokens)], abs=1e-5)


def test_a_copy_is_cancelled_among_its_rollouts(wide: LocalModel) -> None:
    answers = iter([False, False, False, True])
    with pytest.raises(JobCancelled, match="among its rollouts"):
        train(wide, KINDS["full"], cancelled=lambda: next(answers))


# --- answers --------------------------------------------------------------------------------------------------


def test_rows_with_different_memories_are_what_they_are_alone(wide: LocalModel) -> None:
    soft = train(wide, RECIPE).prompt
    assert not isinstance(soft, Weights)
    memories = [None, kept(wide, "lora"), soft, kept(wide, "prefix"), kept(wide, "lora", 5), None]
    memories.append(memories[1])
    requests = [  # which leave one after the other
        request(wide, prefix=memory, temperature=n % 2, seed=n, max_new_tokens=8 + n * 5 % 7)
        for n, memory in enumerate(memories)
    ]
    alone = [wide.generate([one])[0] for one in requests]
    for one, other in zip(alone, wide.generate(requests), strict=True):
        assert one.token_ids == other.token_ids
        assert one.mean_logprob == pytest.approx(other.mean_logprob, abs=1e-5)
    assert len({one.token_ids for one in alone}) > 3


def test_rows_that_come_and_go_keep_their_own_memory(wide: LocalModel) -> None:
    reader, memories = Reader(wide.network), [kept(wide, "lora"), None, kept(wide, "lora", 5), kept(wide, "prefix")]

    def flown(numbers: list[int]) -> list[list[int]]:
        decoder = Decoder(wide.network, ())
        rows = [Row(max_new_tokens=4 + 3 * n) for n in numbers]
        for n, row in zip(numbers, rows, strict=True):
            with torch.no_grad():
                _, prefix, logits_BV = reader.read([request(wide, prefix=memories[n])], wide._row_embeddings)
            decoder.join(prefix, logits_BV, [row])
            decoder.step()
        while decoder.rows:
            decoder.step()
        return [row.tokens for row in rows]

    if wide.network.why_slow is None:  # else nobody joins
        assert flown([0, 1, 2, 3]) == [flown([n])[0] for n in range(4)]


def test_an_answer_is_drawn_from_the_memory(wide: LocalModel) -> None:
    base, asked = wide.network.model, list(prompt_ids(wide))
    low, prefix = kept(wide, "lora"), kept(wide, "prefix")
    assert isinstance(low, LowRank)
    assert isinstance(prefix, KeyValues)
    matrices = {name: tensor.double() for name, tensor in low.tensors.items()}
    for memory, network in ((low, merged(base, matrices, low.scale)), (prefix, base)):
        answer = wide.generate([request(wide, prefix=memory)])[0]
        cache = DynamicCache()
        if memory is prefix:
            for layer, (k, v) in enumerate(zip(prefix.keys_LHVD, prefix.values_LHVD, strict=True)):
                cache.update(k[None].double(), v[None].double(), layer)
        with torch.no_grad():
            logits = network(input_ids=torch.tensor([asked + list(answer.token_ids)]), past_key_values=cache).logits[
                0
            ]
        assert logits[len(asked) - 1 : -1].argmax(-1).tolist() == list(answer.token_ids)


def test_a_memory_of_another_model_is_refused(wide: LocalModel, tmp_path: Path) -> None:
    for name, options in {"deeper": {"layers": 3}, "wider": {"width": 48}}.items():
        other = open_model(tmp_path / name, architecture=wide.network.model.config.model_type, **options)
        for kind in KEPT:
            plain = wide.submit(request(wide))
            with pytest.raises(ModelMismatch, match="use the model it was made with"):
                wide.submit(request(wide, prefix=kept(other, kind))).result(timeout=300)
            assert plain.result(timeout=300).token_ids
        other.close()


# --- keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_the_questions(wide: LocalModel, kind: str) -> None:
    memory = PARAMETERISATIONS[kind](wide, QUESTION, KINDS[kind], 3)
    found = memory.keys()
    embeds_TE = memory.initial_VE if kind == "prefix" else wide.text_embeddings(QUESTION)  # type: ignore[attr-defined]
    np.testing.assert_allclose(found.input, keys.input_key(embeds_TE), atol=1e-6)
    if wide.network.model.config.model_type == "gpt2":
        assert found.kv is None
        return
    # A prefix that was not trained yet has the keys of the soft prompt it was made from: the rotation is undone.
    assert found.kv is not None
    np.testing.assert_allclose(found.kv, keys.kv_key(wide.network, embeds_TE, kv_heads="mean"), atol=1e-5)
    assert found.kv.shape == wide.query(QUESTION, KeyKind.KV).shape


def test_a_prefix_whose_rotation_is_not_known_keeps_the_key_that_it_began_with(tmp_path: Path) -> None:
    model = open_model(tmp_path, architecture="olmo2")
    assert model.network.why_slow is not None
    trained = train(model, KINDS["prefix"])
    began = PARAMETERISATIONS["soft_prompt"](model, QUESTION, RECIPE, 3).keys()
    assert trained.keys.kv is not None
    np.testing.assert_allclose(trained.keys.kv, began.kv, atol=1e-6)
    assert train(model, KINDS["lora"]).final.tokens > 0  # decoded by transformers, with known projections
    model.close()


@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "gemma3_text"])
def test_the_rotation_of_a_prefix_is_undone_in_every_family(architecture: str, tmp_path: Path) -> None:
    model = open_model(tmp_path, architecture=architecture, dtype="float64")
    memory = PARAMETERISATIONS["prefix"](model, QUESTION, KINDS["prefix"], 3)
    layers = model.network.model.model.layers
    normed = architecture == "gemma3_text"  # whose keys keep their norm
    modules = [layer.self_attn.k_norm if normed else layer.self_attn.k_proj for layer in layers]
    with keys._captured(modules) as outputs:
        model.network.read([memory.initial_VE])  # type: ignore[attr-defined]
    heads, width = memory.keys_LHVD.shape[1], memory.keys_LHVD.shape[3]  # type: ignore[attr-defined]
    plain = [output[0].transpose(0, 1) if normed else output[0].view(-1, heads, width) for output in outputs]
    expected = keys._joined(keys.pool_heads(states.flatten(1), heads, heads, keep=True) for states in plain)
    found = keys.states_key(model.network, memory.keys_LHVD, kv_heads="keep")  # type: ignore[attr-defined]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    model.close()


# --- as it is kept, and what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KEPT)
def test_bytes_round_trip_and_are_the_same_every_time(wide: LocalModel, kind: str) -> None:
    memory, recipe = kept(wide, kind), KINDS[kind]
    data = to_bytes(memory)
    again = from_bytes(data, recipe=recipe, virtual_tokens=recipe.positions, width=32, memory_id="mem_a")
    assert again.memory_id == "mem_a"
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in memory.tensors.items())
    assert to_bytes(again) == data == to_bytes(kept(wide, kind))
    assert wide.generate([request(wide, prefix=again)])[0].token_ids


def test_a_rank_of_nothing_is_refused(wide: LocalModel) -> None:
    with pytest.raises(InputError, match="lora_rank is 0: expected at least 1"):
        train(wide, replace(KINDS["lora"], lora_rank=0))


def test_projections_of_another_kind_are_refused_in_one_sentence(tmp_path: Path) -> None:
    model = open_model(tmp_path, architecture="phi3")  # one matrix for query, key and value
    with pytest.raises(InputError, match=r"'phi3' has mlp\.gate_up_proj, self_attn\.qkv_proj: use"):
        train(model, KINDS["lora"])
    assert train(model, KINDS["prefix"]).keys.kv is None
    model.close()
