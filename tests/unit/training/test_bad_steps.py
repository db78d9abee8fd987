"""Steps that go wrong or come out empty: completions without an end or a text, numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from slow_reference import open_model

from elm_agent.errors import TrainingError
from elm_agent.memory.gate import admit
from elm_agent.models.engine import LocalModel
from elm_agent.models.network import Network, Prefix
from elm_agent.protocols import Trained
from elm_agent.records import MemoryState, Recipe
from elm_agent.tasks import get_task
from elm_agent.training import GrpoTrainer, grpo

VOTES = Recipe(rollouts=4, steps=3, max_new_tokens=5, virtual_tokens=4, learning_rate=0.05)
IMITATION = replace(VOTES, objective="sft_greedy")
BOTH = pytest.mark.parametrize("recipe", [replace(VOTES, beta=0.1), IMITATION], ids=["votes", "imitation"])


@pytest.fixture
def model(tmp_path: Path) -> Iterator[LocalModel]:
    """Its last LayerNorm has a bias, so that the tests can say what it says."""
    model = open_model(tmp_path / "m", architecture="gpt2")
    yield model
    model.close()


class Anything:
    """Every completion is a good answer, so that all rewards are equal."""

    name = "anything"

    def messages(self, question: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}]

    def extract(self, text: str) -> str | None:
        return "same" + text[:0]

    def equivalent(self, left: str, right: str) -> bool:
        return left == right


def train(model: LocalModel, recipe: Recipe, task: Any = None, **options: Any) -> Trained:
    trainer = GrpoTrainer(model, task or get_task("math"))
    return trainer.train("What is 2 plus 3?", recipe=recipe, seed=0, **options)


def say_only(model: LocalModel, token: int) -> None:
    """The next token is always this one, whatever was read, with a little of it left in the logits."""
    network = model.network.model
    with torch.no_grad():
        direction_E = network.lm_head.weight[token]
        network.transformer.ln_f.weight.fill_(1e-3)
        network.transformer.ln_f.bias.copy_(100 * direction_E / direction_E.square().sum())


def poison(model: LocalModel, value: float) -> None:
    with torch.no_grad():
        model.network.model.transformer.ln_f.bias[0] = value


@BOTH
def test_completions_that_hit_the_limit_are_trained_on_as_they_are(model: LocalModel, recipe: Recipe) -> None:
    say_only(model, 40)
    trained = train(model, recipe)
    assert {(rollout.tokens, rollout.finished) for rollout in trained.rollouts} == {(5, False)}
    assert {record.finished_share for record in trained.curve} == {0.0}
    assert all(math.isfinite(record.loss) for record in trained.curve)


@BOTH
def test_completions_that_end_at_once_have_no_text_and_no_answer(model: LocalModel, recipe: Recipe) -> None:
    say_only(model, model.end_ids[0])
    trained = train(model, recipe)
    said = {(rollout.text, rollout.answer, rollout.tokens, rollout.finished) for rollout in trained.rollouts}
    assert said == {("", None, 1, True)}
    assert {(record.majority_answer, record.vote_share) for record in trained.curve} == {(None, 0.0)}
    state, reason = admit(trained.curve, recipe)
    assert (state, reason) == (MemoryState.CANDIDATE, "none of 3 steps produced an answer to vote on")


@BOTH
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_no_votes(model: LocalModel, recipe: Recipe, value: float) -> None:
    poison(model, value)
    with pytest.raises(TrainingError, match=r"^step 1: the model's logits are not finite at token 1 of rollout 1 "):
        train(model, recipe, Anything())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_curve_of_a_training_that_fails_is_kept(model: LocalModel, value: float) -> None:
    told: list[dict[str, Any]] = []

    def observe(_name: str, detail: dict[str, Any]) -> None:
        told.append(detail)
        if len(told) == 2:
            poison(model, value)

    with pytest.raises(TrainingError, match=r"^step 3: the model's logits") as caught:
        train(model, VOTES, Anything(), observe=observe)
    assert [record.step for record in caught.value.curve] == [0, 1]
    assert [record.vote_share for record in caught.value.curve] == [1.0, 1.0]


def test_a_loss_that_is_not_finite_keeps_the_curve_too(model: LocalModel) -> None:
    recipe = replace(IMITATION, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"loss (nan|inf), gradient norm .*: lower the learning rate") as caught:
        train(model, recipe)
    assert [record.step for record in caught.value.curve] == [0]
    assert math.isfinite(caught.value.curve[0].loss)


@pytest.mark.parametrize("kind", ["soft_prompt", "lora"])
def test_an_update_without_memory_is_done_in_smaller_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    model = open_model(tmp_path / "llama", dtype="float64")
    recipe, inner = replace(VOTES, parameterisation=kind, beta=0.1), Network.logprobs
    plain = train(model, recipe)
    sizes: list[int] = []

    def cramped(network: Network, prefix: Prefix, last_id: int, tokens_BT: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(tokens_BT))
        chosen_BT = inner(network, prefix, last_id, tokens_BT, *rest)
        if len(tokens_BT) > 1 and chosen_BT.requires_grad:
            chosen_BT.sum().backward()  # part of a gradient was already there
            raise torch.OutOfMemoryError("CUDA out of memory")
        return chosen_BT

    monkeypatch.setattr(Network, "logprobs", cramped)
    cut = train(model, recipe)
    assert {1, 4} <= set(sizes)
    assert [rollout.text for rollout in cut.rollouts] == [rollout.text for rollout in plain.rollouts]
    for one, other in zip(tensors(cut), tensors(plain), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-5)  # float32, of numbers up to 0.2
    model.close()


def test_memory_that_does_not_suffice_for_one_row_is_no_reason_to_try_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(tmp_path / "llama")
    assert model.network.gradient_bytes  # before nothing works any more
    sizes: list[int] = []

    def full(_network: Network, _prefix: Prefix, _last_id: int, tokens_BT: torch.Tensor, *_rest: Any) -> torch.Tensor:
        sizes.append(len(tokens_BT))
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(Network, "logprobs", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        train(model, replace(VOTES, beta=0.1))
    assert sizes == [4, 2, 1, 1]  # the last time with layers that are computed twice
    model.close()


@pytest.mark.parametrize("kind", ["soft_prompt", "lora"])
def test_a_row_that_is_too_much_is_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    model = open_model(tmp_path / "llama", dtype="float64")
    recipe, inner = replace(VOTES, parameterisation=kind, beta=0.1), Network.logprobs
    plain = train(model, recipe)
    tried: list[bool] = []

    def cramped(network: Network, *arguments: Any) -> torch.Tensor:
        chosen_BT = inner(network, *arguments)
        if chosen_BT.requires_grad:
            tried.append(network._sparing)
            if not network._sparing:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return chosen_BT

    monkeypatch.setattr(Network, "logprobs", cramped)
    spared = train(model, recipe)
    assert tried[:4] == [False, False, False, True]
    assert not model.network._sparing
    for one, other in zip(tensors(spared), tensors(plain), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-5)  # float32, of numbers up to 0.2
    model.close()


@pytest.mark.parametrize(
    ("rows", "sizes", "sparing"), [(0.5, {1}, True), (1, {1}, False), (2, {2}, False), (9, {4}, False)]
)
@pytest.mark.parametrize("known", [True, False])
def test_parts_are_as_large_as_there_is_room_for_before_anything_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: float, sizes: set[int], sparing: bool, known: bool
) -> None:
    """``rows``: how many full rows half of the spare memory keeps for the gradient."""
    model = open_model(tmp_path / "llama", dtype="float64")
    if not known:
        monkeypatch.setattr(model.network, "why_slow", "unknown")
    recipe, inner = replace(VOTES, beta=0.1, steps=1), Network.logprobs
    model._serving._end_ids = ()  # each rollout runs to its limit
    plain = train(model, recipe)
    per_position, per_prompt_position = model.network.gradient_bytes
    before = recipe.virtual_tokens + len(model.encode(get_task("math").messages("What is 2 plus 3?"))) - 1
    row = recipe.max_new_tokens * per_position + before * per_prompt_position
    monkeypatch.setattr(grpo, "spare_bytes", lambda _device: int(2 * rows * row))
    seen: set[int] = set()
    spared: set[bool] = set()

    def watched(network: Network, prefix: Prefix, last_id: int, tokens_BT: torch.Tensor, *rest: Any) -> torch.Tensor:
        chosen_BT = inner(network, prefix, last_id, tokens_BT, *rest)
        if chosen_BT.requires_grad:
            seen.add(len(tokens_BT))
            spared.add(network._sparing)
        return chosen_BT

    monkeypatch.setattr(Network, "logprobs", watched)
    monkeypatch.setattr(Network, "reads_trees", lambda *_: False)
    cut = train(model, recipe)
    assert (seen, spared) == (sizes, {sparing and known})
    for one, other in zip(tensors(cut), tensors(plain), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-5)
    model.close()


def test_what_a_row_keeps_is_measured(tmp_path: Path) -> None:
    """Twice as many layers keep twice as much, and a row of 40 positions about what 40 positions are said to keep."""
    small, large = (open_model(tmp_path / str(layers), layers=layers) for layers in (2, 4))
    per_position, per_prompt_position = large.network.gradient_bytes
    half, _ = small.network.gradient_bytes
    assert 1.6 * half < per_position < 2 * half  # the head keeps something too
    assert 0 < per_prompt_position < per_position
    told = large.network._kept(1, 40)
    assert 0.9 * told < 40 * per_position < 1.1 * told
    small.close()
    large.close()


def tensors(trained: Trained) -> list[torch.Tensor]:
    kept: Any = trained.prompt
    return [kept.prompt_VE] if hasattr(kept, "prompt_VE") else [kept.tensors[name] for name in sorted(kept.tensors)]
