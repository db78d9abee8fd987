"""Rows drawn and memories updated at the same time, on a stream each."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from elm_agent.models import load
from elm_agent.models.compute import ComputeThread
from elm_agent.models.streams import Lane
from elm_agent.protocols import GenerationRequest, Trained
from elm_agent.records import Recipe
from elm_agent.tasks import get_task
from elm_agent.testing.tiny import write_tiny_model
from elm_agent.training import GrpoTrainer


class Pretended:
    """What a lane asks of ``torch.cuda``, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        monkeypatch.setattr(torch.cuda, "Stream", lambda *_, **__: self)
        monkeypatch.setattr(torch.cuda, "default_stream", lambda *_: "default")
        monkeypatch.setattr(torch.cuda, "stream", self.on)

    @contextmanager
    def on(self, stream: Pretended) -> Iterator[None]:
        assert stream is self
        self.asked.append("on")
        try:
            yield
        finally:
            self.asked.append("off")

    def wait_stream(self, other: str) -> None:
        self.asked.append(f"after {other}")

    def synchronize(self) -> None:
        self.asked.append("done")


def test_work_on_a_lane_begins_after_the_default_stream_and_is_done_when_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretended = Pretended(monkeypatch)
    compute = ComputeThread(Lane(torch.device("cuda"), urgent=True))
    compute.run(lambda: pretended.asked.append("work"))
    assert pretended.asked == ["after default", "on", "work", "off", "done"]
    with pytest.raises(ZeroDivisionError):
        compute.run(lambda: 1 // 0)
    assert pretended.asked[5:] == ["after default", "on", "off", "done"]
    compute.close()


def test_the_setting_gives_each_seat_a_thread(tmp_path: Path) -> None:
    folder = str(write_tiny_model(tmp_path / "m"))
    for overlap in (False, True):
        model = load(folder, device="cpu", offline=True, overlap=overlap)
        with model._lease.learning() as compute, ExitStack() as stack:
            here = compute(threading.current_thread)
            if overlap:
                draw = stack.enter_context(model._lease.serving())
                assert draw(threading.current_thread) is not here
        assert model.generate([GenerationRequest(prompt_ids=(65, 66), max_new_tokens=2)])[0].token_ids
        model.close()


def test_networks_whose_passes_change_their_rotations_do_one_thing_at_a_time(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config))
    model = load(str(folder), device="cpu", offline=True, overlap=True)
    assert model.network.why_slow is not None
    assert model._lease._drawer is model._lease._computer
    model.close()


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
