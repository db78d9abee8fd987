"""What an actor opens, without a cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'elm-agent[ray]'")

from elm_agent.executors.ray import actor
from elm_agent.settings import Settings


@pytest.mark.parametrize(("concurrency", "jobs_per_actor", "together"), [(4, 2, 2), (1, 3, 1), (4, 8, 4)])
def test_an_actor_learns_as_many_at_a_time_as_are_counted_to_it(
    concurrency: int, jobs_per_actor: int, together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Settings] = []
    workers: list[dict[str, Any]] = []

    def factory(settings: Settings, *, owns_index: bool) -> SimpleNamespace:
        assert not owns_index
        opened.append(settings)
        fingerprint = SimpleNamespace(id="m", name="tiny")
        return SimpleNamespace(
            model=SimpleNamespace(fingerprint=fingerprint), worker=lambda **options: workers.append(options)
        )

    monkeypatch.setattr(actor, "load", lambda _path: factory)
    settings = Settings(
        home=tmp_path,
        worker={"concurrency": concurrency, "poll_seconds": 0.1},
        ray={"jobs_per_actor": jobs_per_actor},
    )
    actor.Learner().open("mine:factory", settings.model_dump(mode="json"), "m", None)
    assert opened[0].worker.concurrency == together
    assert opened[0].worker.poll_seconds == 0.1
    assert workers == [{}]  # a trainer of one's own has one at a time: the runtime knows
