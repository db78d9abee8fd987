"""Nearest words and drift, held against a slow reference on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from elm_agent import models
from elm_agent.adapters import KeyValues
from elm_agent.bench.filling import made_up
from elm_agent.errors import ModelMismatch
from elm_agent.memory.vectors import try_memory, view_vectors
from elm_agent.models.vocabulary import nearest_tokens
from elm_agent.protocols import GenerationRequest
from elm_agent.records import MemoryRecord, Recipe, utcnow
from elm_agent.softprompt import SoftPrompt
from elm_agent.tasks import get_task
from elm_agent.testing.tiny import write_tiny_model

V = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    loaded = models.load(str(write_tiny_model(tmp_path_factory.mktemp("vectors"))), threads=1)
    yield loaded
    loaded.close()


def record(model: Any, question: str = "abc") -> MemoryRecord:
    now = utcnow()
    [item] = made_up(np.random.default_rng(0), 1, 32)
    values: dict[str, Any] = dict.fromkeys(MemoryRecord.__slots__, "x")
    return MemoryRecord(
        **values
        | {"question": question, "model": model.fingerprint, "recipe": Recipe(), "created_at": now, "task": item.task}
    )


def test_nearest_tokens_are_those_of_a_slow_loop(model: Any) -> None:
    rows = torch.randn(V, 32, generator=torch.Generator().manual_seed(0))
    weight = model.network.embedding.weight.detach().double()
    found = nearest_tokens(model, rows, 3)
    for row, near in zip(rows.double(), found, strict=True):
        cosines = [float(row @ token / row.norm() / token.norm()) for token in weight]
        best = sorted(cosines, reverse=True)[:3]
        assert [one.cosine for one in near] == pytest.approx(best, abs=1e-5)
    own = nearest_tokens(model, model.network.embed(model.tokenizer("q")["input_ids"]), 1)
    assert (own[0][0].token, own[0][0].cosine) == ("q", pytest.approx(1.0, abs=1e-5))


def test_a_memory_that_never_moved_is_its_question(model: Any) -> None:
    began_TE = model.text_embeddings("abc").detach().float()
    prompt = SoftPrompt(torch.stack([began_TE[n % 3] for n in range(V)]))
    view = view_vectors(model, record(model), prompt)
    assert [row.began for row in view.rows] == list("abcab")
    assert [row.near[0].token for row in view.rows] == list("abcab")
    assert view.moved == pytest.approx(0, abs=1e-6)
    moved = view_vectors(model, record(model), SoftPrompt(prompt.prompt_VE + torch.eye(V, 32)))
    assert [row.moved for row in moved.rows] == pytest.approx([1.0] * V)
    assert moved.moved == pytest.approx(V**0.5)
    assert moved.rows[0].cosine < 1


def test_other_kinds_have_no_rows(model: Any) -> None:
    states = torch.randn(2, 2, V, 8)
    view = view_vectors(model, record(model), KeyValues(states, states))
    assert (view.kind, view.rows) == ("prefix", ())


def test_a_memory_of_another_model_is_refused_by_name(model: Any) -> None:
    foreign = replace(record(model), model=replace(model.fingerprint, name="other", weights="sha256:0"))
    prompt = SoftPrompt(torch.randn(V, 32))
    with pytest.raises(ModelMismatch, match="--model other"):
        view_vectors(model, foreign, prompt)
    with pytest.raises(ModelMismatch):
        try_memory(model, foreign, prompt, "q", max_new_tokens=2)


def test_trying_a_memory_answers_with_and_without_it(model: Any) -> None:
    prompt = SoftPrompt(torch.randn(V, 32, generator=torch.Generator().manual_seed(1)) * 3)
    tried = try_memory(model, record(model), prompt, "What is 2 + 2?", max_new_tokens=6)
    ids = model.encode(get_task("math").messages("What is 2 + 2?"))
    rows = [GenerationRequest(prompt_ids=ids, prefix=one, max_new_tokens=6) for one in (prompt, None)]
    assert [tried.with_text, tried.without_text] == [generation.text for generation in model.generate(rows)]
