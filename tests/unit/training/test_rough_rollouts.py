"""Rollouts that are drawn in another way: with rounded weights, or with drafts; what changes and what does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from slow_reference import open_model

from elm_agent.errors import InputError
from elm_agent.models import decoding, engine
from elm_agent.models.engine import LocalModel
from elm_agent.protocols import GenerationRequest, Trained
from elm_agent.records import Recipe
from elm_agent.tasks import get_task
from elm_agent.training import GrpoTrainer, grpo

QUESTIONS = ["What is 2 plus 3?", "What is 12 times 4?", "7 - 5 = ?"]
RECIPE = Recipe(rollouts=4, steps=4, max_new_tokens=8, virtual_tokens=5, learning_rate=0.05, temperature=0.3)
INT8 = replace(RECIPE, rollout_weights="int8")
DRAFTS = replace(RECIPE, rollout_drafts=True)


@pytest.fixture
def model(tmp_path: Path) -> Iterator[LocalModel]:
    model = open_model(tmp_path / "tiny")
    yield model
    model.close()


def train(model: LocalModel, recipe: Recipe, question: str = QUESTIONS[0]) -> Trained:
    return GrpoTrainer(model, get_task("text")).train(question, recipe=recipe, seed=0)


# --- with rounded weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "away"), [("float16", 0.01), ("int8", 0.3)])
def test_rollouts_with_rounded_weights_are_corrected_for(model: LocalModel, weights: str, away: float) -> None:
    exact, rough = train(model, RECIPE), train(model, replace(RECIPE, rollout_weights=weights))
    assert [record.ratio_mean for record in exact.curve] == [None] * 4
    for record in rough.curve:
        if record.grad_norm > 0:  # else nothing was learned, and nothing to be corrected
            assert record.ratio_mean == pytest.approx(1, abs=away)
            assert record.ratio_max is not None
            assert record.ratio_max > 1
    assert any(record.grad_norm > 0 for record in rough.curve)


def test_the_first_token_is_exact_and_weighs_one(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[list[decoding.Row]] = []
    sample = grpo.sample_group

    def watched(*arguments: Any, **options: Any) -> list[decoding.Row]:
        groups.append(sample(*arguments, **options))
        return groups[-1]

    monkeypatch.setattr(grpo, "sample_group", watched)
    train(model, RECIPE)
    train(model, INT8)
    exact, rough = groups[0], groups[4]
    assert [row.tokens[0] for row in rough] == [row.tokens[0] for row in exact]
    for row in rough:
        assert len(row.sampler_logprobs) == len(row.tokens)
    assert all(row.sampler_logprobs == [] for row in exact)


def test_answers_stay_exact_and_one_twin_serves_all_memories(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    make = engine.twin_of
    monkeypatch.setattr(engine, "twin_of", lambda *given: made.append(given) or make(*given))
    request = GenerationRequest(prompt_ids=model.encode(get_task("text").messages(QUESTIONS[0])), max_new_tokens=8)
    before = model.generate([request])
    alone = [train(model, INT8, question) for question in QUESTIONS]
    with ThreadPoolExecutor(4) as pool:
        training = [pool.submit(train, model, INT8, question) for question in QUESTIONS]
        answering = pool.submit(lambda: [model.generate([request])[0].token_ids for _ in range(5)])
        together = [job.result() for job in training]
        assert set(answering.result()) == {before[0].token_ids}
    assert len(made) == 1
    for one, other in zip(alone, together, strict=True):
        assert [rollout.text for rollout in one.rollouts] == [rollout.text for rollout in other.rollouts]
        torch.testing.assert_close(one.prompt.prompt_VE, other.prompt.prompt_VE, rtol=0, atol=1e-5)


def test_rollouts_on_a_twin_stop_when_asked(model: LocalModel) -> None:
    stop = threading.Event()
    with pytest.raises(engine.JobCancelled):
        GrpoTrainer(model, get_task("text")).train(
            QUESTIONS[0], recipe=INT8, seed=0, observe=lambda *_: stop.set(), cancelled=stop.is_set
        )


# --- from drafts ----------------------------------------------------------------------------------------------


def test_drafts_change_nothing_but_the_number_of_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(tmp_path / "wide", dtype="float64")
    passes = {RECIPE: 0, DRAFTS: 0}
    trained: dict[Recipe, Trained] = {}
    step = decoding.step
    for recipe in passes:

        def counted(*arguments: Any, recipe: Recipe = recipe) -> torch.Tensor:
            passes[recipe] += 1
            return step(*arguments)

        monkeypatch.setattr(decoding, "step", counted)
        trained[recipe] = train(model, recipe)
    model.close()
    plain, drafted = trained[RECIPE], trained[DRAFTS]
    assert [rollout.text for rollout in drafted.rollouts] == [rollout.text for rollout in plain.rollouts]
    torch.testing.assert_close(drafted.prompt.prompt_VE, plain.prompt.prompt_VE, rtol=0, atol=1e-6)
    assert passes[DRAFTS] < passes[RECIPE]


def test_memories_with_and_without_drafts_learn_beside_each_other(model: LocalModel) -> None:
    recipes = [RECIPE, DRAFTS, replace(INT8, rollout_drafts=True)]
    alone = [train(model, recipe) for recipe in recipes]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda recipe: train(model, recipe), recipes))
    for one, other in zip(alone, together, strict=True):
        assert [rollout.text for rollout in one.rollouts] == [rollout.text for rollout in other.rollouts]
        torch.testing.assert_close(one.prompt.prompt_VE, other.prompt.prompt_VE, rtol=0, atol=1e-5)


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "options", "sentence"),
    [
        (INT8, {"architecture": "gpt2"}, "rollout_weights is 'int8', but its architecture 'gpt2' .*: use 'exact'"),
        (
            INT8,
            {"dtype": "float64"},
            "rollout_weights is 'int8', but the model is loaded as float64, .*: use 'exact'",
        ),
        (DRAFTS, {"architecture": "gpt2"}, "rollout_drafts is True, but its architecture 'gpt2' .*: use False"),
        (replace(RECIPE, rollout_weights="int4"), {}, "'int4': expected 'exact', 'float16' or 'int8'"),
        (replace(INT8, parameterisation="lora"), {}, "'int8' are a copy of the layers .*'lora' changes"),
        (replace(INT8, objective="sft_greedy"), {}, "'sft_greedy' has one completion, .*rollout_weights is 'int8'"),
    ],
)
def test_what_cannot_be_drawn_so_is_refused_before_the_first_step(
    tmp_path: Path, recipe: Recipe, options: dict[str, str], sentence: str
) -> None:
    model = open_model(tmp_path / "other", **options)
    with pytest.raises(InputError, match=sentence):
        train(model, recipe)
    model.close()


def test_where_another_engine_draws_it_is_not_asked_for_approximations(model: LocalModel) -> None:
    model.draws_itself = False
    for recipe in (INT8, DRAFTS):
        with pytest.raises(InputError, match="another engine draws the tokens"):
            train(model, recipe)
