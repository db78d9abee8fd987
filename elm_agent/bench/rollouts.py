"""How quickly rollouts are drawn exactly, with each labelled approximation of drawing, and how far off they are.

One memory of the same question is trained in each way, in turns, so that a busy machine slows all alike; medians.
Milliseconds are those of a step's completions, reading the prompt included, for each token that was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from elm_agent.records import Recipe

if TYPE_CHECKING:
    from elm_agent.models.engine import LocalModel
    from elm_agent.protocols import Trained

WAYS: Mapping[str, dict[str, Any]] = {
    "exact": {},
    "drafts": {"rollout_drafts": True},
    "float16": {"rollout_weights": "float16"},
    "float16, drafts": {"rollout_weights": "float16", "rollout_drafts": True},
    "int8": {"rollout_weights": "int8"},
}

COLUMNS = ("rollouts", "ms a token", "exact / this", "tokens", "final vote", "mean ratio", "largest", "same texts")

Runs = dict[str, list["Trained"]]
"""Of each way, what was trained; its first warms up and makes the twin, and does not count."""


def measure(
    model: LocalModel, question: str, recipe: Recipe, repeats: int, runs: Runs, told: Callable[[str], None]
) -> None:
    """Add ``repeats`` and one memories of each way to ``runs``; ``told`` of each way's name when one is trained."""
    from elm_agent.tasks import get_task
    from elm_agent.training import GrpoTrainer

    trainer = GrpoTrainer(model, get_task("math"))
    for _ in range(repeats + 1):
        for way, values in WAYS.items():
            trained = trainer.train(question, recipe=replace(recipe, **values), seed=recipe.seed)
            runs.setdefault(way, []).append(trained)
            told(way)


def findings(runs: Runs) -> list[dict[str, Any]]:
    """One for each way that was measured. ``same_texts``: whether its rollouts are those that were drawn exactly."""
    counted = {way: trained[1:] for way, trained in runs.items() if len(trained) > 1}
    exact = counted.get("exact", [])[:1]
    return [_finding(way, trained, exact[0]) for way, trained in counted.items() if exact]


def _finding(way: str, runs: list[Trained], exact: Trained) -> dict[str, Any]:
    curve = runs[0].curve
    means = [record.ratio_mean for record in curve if record.ratio_mean is not None]
    return {
        "way": way,
        "runs": len(runs),
        "ms_per_token": median(1000 * sum(s.seconds_rollout for s in t.curve) / _tokens(t) for t in runs),
        "update_seconds": median(sum(s.seconds_update for s in t.curve) / len(t.curve) for t in runs),
        "tokens": _tokens(runs[0]),
        "final_vote_share": curve[-1].vote_share,
        "ratio_mean": median(means) if means else None,
        "ratio_max": max((record.ratio_max for record in curve if record.ratio_max is not None), default=None),
        "same_texts": _texts(runs[0]) == _texts(exact),
    }


def _tokens(trained: Trained) -> int:
    return sum(record.tokens for record in trained.curve)


def _texts(trained: Trained) -> list[str]:
    return [rollout.text for rollout in trained.rollouts]


def rows(found: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """What ``COLUMNS`` names, of each way."""
    return [
        (
            one["way"],
            f"{one['ms_per_token']:.2f}",
            f"{found[0]['ms_per_token'] / one['ms_per_token']:.2f}",
            str(one["tokens"]),
            f"{one['final_vote_share']:.2f}",
            *(f"{one[name]:.3f}" if one[name] is not None else "-" for name in ("ratio_mean", "ratio_max")),
            "yes" if one["same_texts"] else "no",
        )
        for one in found
    ]
