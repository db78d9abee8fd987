"""Learning from a whole set: each step is the step of a single question, and all pull the same parameters."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from slow_reference import open_model

from elm_agent.errors import InputError
from elm_agent.records import Recipe
from elm_agent.tasks import TextTask
from elm_agent.training import GrpoTrainer
from elm_agent.training.whole_set import SetTrainer, set_order

RECIPE = Recipe(virtual_tokens=2, rollouts=3, steps=3, max_new_tokens=4, temperature=1.0)


def test_every_epoch_has_every_question_once() -> None:
    order = list(set_order(5, epochs=3, seed=1))
    for epoch in range(3):
        assert sorted(order[5 * epoch : 5 * epoch + 5]) == list(range(5))
    assert Counter(order) == dict.fromkeys(range(5), 3)
    assert order[:5] != order[5:10]
    assert order != list(set_order(5, epochs=3, seed=2))


def test_a_set_of_one_question_is_that_question(tmp_path: Path) -> None:
    model = open_model(tmp_path)
    try:
        for kind in ("soft_prompt", "lora"):
            recipe = replace(RECIPE, parameterisation=kind, lora_rank=2)
            alone = GrpoTrainer(model, TextTask()).train("what is one", recipe=recipe, seed=3)
            whole = SetTrainer(model, TextTask()).train_set(["what is one"], recipe=recipe, seed=3, epochs=3)
            assert [rollout.text for rollout in whole.rollouts] == [rollout.text for rollout in alone.rollouts]
            assert len(whole.entropies) == 3
            assert (whole.entropies, whole.initial_norm) == (alone.entropies, alone.initial_norm)
            for name, tensor in alone.prompt.tensors.items():
                torch.testing.assert_close(whole.prompt.tensors[name], tensor, rtol=0, atol=0)
    finally:
        model.close()


class Agreeing(TextTask):
    """Whatever is said is the same answer, so that all rewards are equal."""

    def extract(self, text: str) -> str | None:
        return "same" + text[:0]


def test_a_step_of_equal_rewards_is_skipped_on_a_set_too(tmp_path: Path) -> None:
    model = open_model(tmp_path)
    try:
        for skip in (True, False):
            recipe = replace(RECIPE, beta=0.5, kl_reference="base", skip_equal_rewards=skip)
            trained = SetTrainer(model, Agreeing()).train_set(["what is one", "two"], recipe=recipe, seed=3, epochs=1)
            assert [record.vote_share for record in trained.curve] == [1.0, 1.0]
            assert [record.grad_norm > 0 for record in trained.curve] == [not skip, not skip]
    finally:
        model.close()


def test_what_makes_no_sense_for_a_set_is_refused(tmp_path: Path) -> None:
    model = open_model(tmp_path)
    try:
        trainer = SetTrainer(model, TextTask())
        for questions, changed in ([], {}), (["a"], {"objective": "sft_greedy"}), (["a"], {"beta": 0.1}):
            recipe = replace(RECIPE, kl_reference="initial", **changed)
            with pytest.raises(InputError, match="a set is learned by rewards"):
                trainer.train_set(questions, recipe=recipe, seed=0, epochs=1)
        with pytest.raises(InputError, match="needs the answer of 'a'"):
            trainer.train_set(["a"], recipe=replace(RECIPE, objective="grpo_ground_truth"), seed=0, epochs=1)
    finally:
        model.close()
