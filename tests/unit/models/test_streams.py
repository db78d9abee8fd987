"""Rows drawn and memories updated at the same time, on a stream each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from elm_agent.models import load
from elm_agent.protocols import Trained
from elm_agent.records import Recipe
from elm_agent.tasks import get_task
from elm_agent.testing.tiny import write_tiny_model
from elm_agent.training import GrpoTrainer

RECIPE = Recipe(rollouts=4, steps=4, max_new_tokens=8, virtual_tokens=5, learning_rate=0.05, beta=0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams need a GPU, and torch sees none here")
@pytest.mark.parametrize("graphs", [False, True])
def test_memories_become_the_same_with_overlap(tmp_path: Path, graphs: bool) -> None:
    folder = str(write_tiny_model(tmp_path / "m"))

    def trained(*, overlap: bool) -> list[Trained]:
        model = load(folder, device="cuda", dtype="float32", offline=True, graphs=graphs, overlap=overlap)
        trainer = GrpoTrainer(model, get_task("text"))
        try:
            with ThreadPoolExecutor(8) as pool:
                questions = [f"What is {n} plus {n}?" for n in range(8)]
                seeds = range(len(questions))
                return list(pool.map(lambda q, n: trainer.train(q, recipe=RECIPE, seed=n), questions, seeds))
        finally:
            model.close()

    for one, other in zip(trained(overlap=False), trained(overlap=True), strict=True):
        for name, tensor in one.prompt.tensors.items():
            torch.testing.assert_close(other.prompt.tensors[name], tensor, rtol=0, atol=1e-3)
