"""Wiring: what settings become, which combinations are refused, and that everything is closed again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from elm_agent import Settings, open_bank, open_runtime
from elm_agent.errors import ModelMismatch, ModelUnavailable, SettingsError, StorageError
from elm_agent.memory.runners import ExternalRunner, InlineRunner, ThreadRunner
from elm_agent.records import Candidate
from elm_agent.tasks import get_task
from elm_agent.testing.doubles import FakeModel, FakeTrainer, FixedVerifier
from elm_agent.testing.tiny import write_tiny_model
from elm_agent.training import RecipeTrainer


class Nameless:
    def score(self, _question: str, _candidates: Any) -> list[Any]:
        return []


def fake(home: Path, **more: Any) -> Any:
    return open_runtime(**({"model": FakeModel(), "trainer": FakeTrainer(), "home": home} | more))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"verification": {"verifier": "prm"}}, ["verification.prm_path"]),
        ({"verification": {"prm_path": "/x"}}, ["verification.prm_path", "mean_logprob"]),
        ({"worker": {"lease_seconds": 5, "heartbeat_seconds": 5}}, ["heartbeat_seconds", "lease_seconds"]),
        ({"learning": {"virtual_tokens": 50}, "model": FakeModel(context_length=51)}, ["virtual_tokens", "51"]),
        ({"verifier": "majority"}, ["verifier=", "verification.verifier"]),
        ({"verifier": Nameless()}, ["verifier=", "Nameless", "name"]),
        ({"trainer": None}, ["FakeModel", "trainer="]),
        ({"worker": {"mode": "ray"}}, ["model=", "trainer=", "ray.factory"]),
        ({"ray": {"min_actors": 3}}, ["ray.min_actors", "ray.max_actors"]),
        ({"eviction": {"where": "colour == 'red'"}}, ["eviction.where", "unknown symbol: 'colour'", "idle_days"]),
        ({"eviction": {"where": "uses > "}}, ["eviction.where", "cannot be read"]),
        ({"eviction": {"where": "uses"}}, ["eviction.where", "neither true nor false"]),
        ({"eviction": {"where": "uses ** 9 > 1"}}, ["eviction.where", "'**'"]),
        ({"eviction": {"models_in_use": ["other"]}}, ["eviction.models_in_use", "'fake'", "add it"]),
        ({"eviction": {"models_in_use": []}}, ["eviction.models_in_use"]),
        ({"eviction": {"min_utility": 1.5}}, ["eviction.min_utility"]),
        ({"no_such_setting": 1}, ["no_such_setting"]),
        ({"database_url": "sqlite://"}, ["on disk"]),
    ],
)
def test_what_cannot_go_together_is_refused_by_name(tmp_path: Path, settings: Any, names: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        fake(tmp_path, **settings)
    for name in names:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "kind"), [("inline", InlineRunner), ("thread", ThreadRunner), ("external", ExternalRunner)]
)
def test_the_worker_mode_chooses_the_runner(tmp_path: Path, mode: str, kind: type) -> None:
    with fake(tmp_path, worker={"mode": mode}) as runtime:
        assert isinstance(runtime.runner, kind)


def test_overrides_go_on_top_of_settings(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, learning={"steps": 3, "rollouts": 4}, task="text")
    with fake(tmp_path, settings=settings, learning={"steps": 5}, task="number") as runtime:
        assert (runtime.recipe.steps, runtime.recipe.rollouts) == (5, 4)
        assert (runtime.task.name, runtime.settings.task) == ("number", "number")
    assert settings.learning.steps == 3


def test_verifiers(tmp_path: Path) -> None:
    def shorter(_question: str, item: Candidate) -> float:
        return -len(item.text)

    for given, name in ((FixedVerifier(), "fixed"), (shorter, "callable")):
        with fake(tmp_path, verifier=given) as runtime:
            assert runtime.verifier.name == name
    for name in ("mean_logprob", "self_certainty", "majority"):
        with fake(tmp_path, verification={"verifier": name}) as runtime:
            assert runtime.verifier.name == name


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    task = get_task("text")
    task.name = "mine"
    with fake(tmp_path, task=task, worker={"mode": "external"}) as runtime:
        assert runtime.task is task
        fingerprint = runtime.model.fingerprint.id
        for name in ("mine", "math"):
            runtime.bank.jobs.enqueue("default", name, task=name, model_id=fingerprint, recipe=runtime.recipe)
        runtime.worker().run(once=True)
        states = {job.task: (job.state, job.reason) for job in runtime.bank.jobs.list()}
    assert states["mine"] == ("done", None)
    assert states["math"] == ("queued", None)  # left to an agent that knows the task


def test_a_bank_made_for_another_model_is_refused(tmp_path: Path) -> None:
    fake(tmp_path).close()
    with pytest.raises(ModelMismatch, match="stranger"):
        fake(tmp_path, model=FakeModel(name="stranger"))


def test_what_was_open_is_closed_when_opening_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from elm_agent.storage.bank import Bank

    closed = []
    close = Bank.close
    monkeypatch.setattr(Bank, "close", lambda bank: (closed.append(bank), close(bank)))
    with pytest.raises(ModelUnavailable):
        open_runtime(model=str(tmp_path / "nowhere"), home=tmp_path, offline=True)
    assert len(closed) == 1


def test_closing_twice_is_closing_once(tmp_path: Path) -> None:
    runtime = fake(tmp_path)
    runtime.close()
    runtime.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError):
        fake(tmp_path / "bank")


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        fake(tmp_path / "file")


def test_the_bank_opens_without_a_model(tmp_path: Path) -> None:
    fake(tmp_path).close()
    bank = open_bank(Settings(home=tmp_path))
    assert [info.name for info in bank.namespaces()] == ["default"]
    bank.close()


def test_a_real_model_end_to_end(tmp_path: Path) -> None:
    folder = str(write_tiny_model(tmp_path / "model"))
    learning = {"steps": 1, "rollouts": 2, "max_new_tokens": 4, "virtual_tokens": 4}
    settings = Settings(model=folder, home=tmp_path, task="text", learning=learning, retrieval={"key": "kv"})
    with open_runtime(settings, worker={"mode": "external"}) as runtime:
        assert isinstance(runtime.trainer, RecipeTrainer)
        fingerprint = runtime.model.fingerprint.id
        for task in ("text", "somebodys_own"):
            runtime.bank.jobs.enqueue("default", task, task=task, model_id=fingerprint, recipe=runtime.recipe)
        assert runtime.worker(concurrency=2).run(once=True) == 1
        assert len(runtime.bank.memories("default")) == 1
        (left,) = runtime.bank.jobs.list(state="queued")
        assert left.task == "somebodys_own"
