"""Workers on Ray that hold a real model, a tiny one with random weights: an agent asks, an actor learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ray_nodes import RayNodes

from elm_agent.integrations.langgraph import build_graph
from elm_agent.records import JobState
from elm_agent.runtime import open_runtime
from elm_agent.settings import Settings
from elm_agent.testing.tiny import write_tiny_model


@pytest.mark.slow
def test_an_actor_learns_with_a_model_of_its_own(ray_cluster: RayNodes, tmp_path: Path) -> None:
    """Nothing is handed to Ray but the settings: model, task and trainer are opened there, as they are here."""
    ray_cluster.keep(2)
    settings = Settings(
        model=str(write_tiny_model(tmp_path / "model")),
        device="cpu",
        threads=1,
        home=tmp_path / "home",
        index="exact",
        task="text",  # whatever it says is an answer
        max_new_tokens=4,
        learning={"steps": 2, "rollouts": 4, "virtual_tokens": 3, "max_new_tokens": 4, "learning_rate": 0.1},
        worker={"mode": "ray", "poll_seconds": 0.1},
        ray={"num_cpus": 0.5, "min_actors": 2, "strategy": "STRICT_SPREAD"},
    )
    with open_runtime(settings) as runtime:
        graph, bank = build_graph(runtime), runtime.bank
        questions = [f"What is {n} times 7?" for n in range(4)]
        asked = [graph.invoke({"question": question}) for question in questions]
        assert runtime.runner.wait_idle(300)
        jobs = bank.jobs.list("default")
        assert {job.state for job in jobs} == {JobState.DONE}, [job.reason for job in jobs]
        memories = {memory.job_id: memory for memory in bank.memories("default")}
        assert set(memories) == {one["job_id"] for one in asked}
        for memory in memories.values():
            assert memory.model == runtime.model.fingerprint
            episode = bank.episode("default", memory.id)
            assert [step.step for step in episode.curve] == [0, 1]
            assert any(step.grad_norm > 0 for step in episode.curve), "it was trained, not only sampled"
            keys, prompt = bank.keys("default", memory.id), bank.prompt("default", memory.id)
            again = runtime.model.keys(prompt)
            np.testing.assert_allclose(keys.input, again.input, rtol=1e-4, atol=1e-5)
        workers = {actor.place.pid for actor in runtime.runner.status().actors if actor.place}  # type: ignore[attr-defined]
        made_by = {event.actor.split(":")[1] for event in bank.events("default") if event.kind == "created"}
        assert made_by <= {str(pid) for pid in workers}, "the actors learned, nobody else"
        found = graph.invoke({"question": questions[0]})
        assert found["memory_id"] in {memory.id for memory in memories.values()}
        assert found["route"] in ("agreed", "memory", "zero_shot")
