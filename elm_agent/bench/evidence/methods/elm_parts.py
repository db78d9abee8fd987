"""What the agent and its memories alone have in common as methods: who trains, and what is told of a training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from elm_agent.bench.evidence.contract import CandidateLine, Item, Workplace
from elm_agent.bench.evidence.trained import RememberedTrainer
from elm_agent.errors import SettingsError, TaskError
from elm_agent.protocols import Task
from elm_agent.records import Candidate, Generation, Recipe, Rollout, StepRecord, Vector
from elm_agent.settings import Settings

NAMESPACE = "evidence"
WORKER = {
    "mode": "inline",
    "max_attempts": 3,  # of a question whose process was killed
    "backoff_seconds": 0,
    "poll_seconds": 0.05,
    "heartbeat_seconds": 2,
    "lease_seconds": 10,  # how long a run that goes on waits for its own dead worker
}


def trainer_at(place: Workplace, *, owner: str, answers: Mapping[str, str] | None = None) -> RememberedTrainer:
    """The trainer that recipes name, with the memories of the whole run. ``answers``: see ``GrpoTrainer``."""
    from elm_agent.models.engine import LocalModel
    from elm_agent.training import GrpoTrainer, RecipeTrainer

    if not isinstance(place.model, LocalModel):
        raise SettingsError(f"a {type(place.model).__name__} cannot be trained: use a local model")
    trainer = (
        RecipeTrainer(place.model, place.task)
        if answers is None
        else GrpoTrainer(place.model, place.task, answers=answers)
    )
    return RememberedTrainer(
        trainer,
        place.shared,
        model=place.model,
        task=place.task,
        owner=owner,
        observe=place.observe,
        clock=place.clock,
        stop=place.stop,
    )


def own_bank(settings: Settings, place: Workplace) -> Settings:
    """The settings with a bank in the method's folder, worked off by the caller itself."""
    return settings.changed(
        home=place.folder / "bank",
        namespace=NAMESPACE,
        shared_namespaces=(),
        database_url=None,
        tensors=None,
        tensor_options={},
        index="exact",
        learn=False,
        worker=WORKER,
    )


def rollout_lines(rollouts: Iterable[Rollout]) -> tuple[CandidateLine, ...]:
    """What was drawn while a memory was trained, step after step; ``score`` is the reward."""
    return tuple(
        CandidateLine(
            role="rollout",
            text=one.text,
            answer=one.answer,
            tokens=one.tokens,
            finished=one.finished,
            score=one.reward,
        )
        for one in rollouts
    )


def candidate_lines(result: Mapping[str, Any]) -> tuple[CandidateLine, ...]:
    """Both candidates of an answer of the graph, then what further memories said, and the memory in words."""
    made = [(role, result["candidates"][role]) for role in ("zero_shot", "memory")]
    made += [("opinion", one["candidate"]) for one in result.get("heard") or ()]
    made += [(voice, result.get(voice)) for voice in ("example", "by_prompt")]
    return tuple(CandidateLine.of(role, Candidate(**one)) for role, one in made if one is not None)


def drawn_lines(role: str, drawn: Iterable[Generation], task: Task) -> tuple[CandidateLine, ...]:
    """Completions that were drawn for a vote or a probe."""
    return tuple(
        CandidateLine(
            role=role,
            text=one.text,
            answer=_extracted(one.text, task),
            tokens=len(one.token_ids),
            mean_logprob=one.mean_logprob,
            self_certainty=one.self_certainty,
            finished=one.finished,
            seconds=one.seconds,
        )
        for one in drawn
    )


def _extracted(text: str, task: Task) -> str | None:
    try:
        return task.extract(text)
    except TaskError:  # told where the text was used
        return None


def step_lines(curve: Sequence[StepRecord]) -> tuple[dict[str, Any], ...]:
    """The steps of a training as plain values."""
    return tuple(asdict(step) for step in curve)


def rounded(key: Vector | None) -> tuple[float, ...] | None:
    """A key as text can carry it: four digits are enough for a map."""
    return None if key is None else tuple(float(f"{value:.4g}") for value in key.tolist())


def read_in_training(place: Workplace, item: Item, recipe: Recipe, steps: int) -> int:
    """Tokens that were read: the question and the memory once a step, for the whole group."""
    return steps * (len(place.model.encode(place.task.messages(item.question))) + recipe.positions)
