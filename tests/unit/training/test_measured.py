"""What a training measures for admission, and a probe's rows on a real tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from slow_reference import open_model

from elm_agent.memory.probe import Probe, Reference, Tried
from elm_agent.models.engine import LocalModel
from elm_agent.records import Recipe
from elm_agent.tasks import get_task
from elm_agent.training import GrpoTrainer, numerics

QUESTION = "What is 2 plus 3?"
RECIPE = Recipe(virtual_tokens=4, rollouts=2, steps=2, max_new_tokens=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    model = open_model(tmp_path_factory.mktemp("tiny"))
    yield model
    model.close()


def test_a_training_tells_entropies_and_norms(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    task = get_task("text")  # every completion is an answer, so that there is something to vote on
    trained = GrpoTrainer(model, task).train(QUESTION, recipe=RECIPE, seed=3)
    assert len(trained.entropies) == len(trained.curve) == 2
    assert all(entropy > 0 for entropy in trained.entropies)
    initial_VE = numerics.initial_prompt(model.text_embeddings(QUESTION), 4)
    assert trained.initial_norm == pytest.approx(float(initial_VE.double().norm()))
    assert trained.norm == pytest.approx(float(trained.prompt.tensors["prompt"].double().norm()))
    # and a probe reads it as it was trained: with it and without it, in one batch
    job = cast(Any, type("Job", (), {"recipe": RECIPE, "question": QUESTION, "task": "text"}))
    probe = Probe(model=model, task_for=get_task, questions=0)
    kept = cast(Any, trained.prompt)
    plain, with_it = probe._generate([Tried(Reference(QUESTION, "5"), None, kept)], task, 4, lambda: False)
    assert 0 < len(plain.token_ids) <= 4
    assert 0 < len(with_it.token_ids) <= 4
    found = probe(cast(Any, None), job, trained, cancelled=lambda: False)
    assert (found.past, found.tokens) == (0, len(plain.token_ids) + len(with_it.token_ids))
    # an engine that does not say how likely its tokens were leaves the entropy unknown
    whole = model.sample

    def silent(*arguments: Any) -> Any:
        drawn = whole(*arguments)
        for row in drawn:
            row.logprobs = []
        return drawn

    monkeypatch.setattr(model, "sample", silent)
    assert GrpoTrainer(model, task).train(QUESTION, recipe=RECIPE, seed=3).entropies == ()
