"""How quickly rollouts are drawn exactly, with each labelled approximation of drawing, and how far off they are.

``python -m elm_agent.bench.rollouts [--model NAME] [--steps 10] [--repeat 3] [--threads N] [--json]`` trains one
memory of the same question in each way, in turns, so that a busy machine slows all alike; medians. Milliseconds are
those of a step's completions, reading the prompt included, for each token that was drawn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
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


def measure(model: LocalModel, question: str, recipe: Recipe, repeat: int) -> list[dict[str, Any]]:
    """One row for each way. ``same_texts``: whether its rollouts are those that were drawn exactly."""
    from elm_agent.tasks import get_task
    from elm_agent.training import GrpoTrainer

    trainer = GrpoTrainer(model, get_task("math"))
    runs: dict[str, list[Trained]] = {way: [] for way in WAYS}
    for _ in range(repeat + 1):
        for way, values in WAYS.items():
            runs[way].append(trainer.train(question, recipe=replace(recipe, **values), seed=recipe.seed))
    exact = [rollout.text for rollout in runs["exact"][0].rollouts]
    return [_row(way, trained[1:], exact) for way, trained in runs.items()]  # the first warms up and makes the twin


def _row(way: str, runs: list[Trained], exact: list[str]) -> dict[str, Any]:
    curve = runs[0].curve
    means = [record.ratio_mean for record in curve if record.ratio_mean is not None]
    return {
        "way": way,
        "ms_per_token": median(1000 * sum(s.seconds_rollout for s in t.curve) / _tokens(t) for t in runs),
        "update_seconds": median(sum(s.seconds_update for s in t.curve) / len(t.curve) for t in runs),
        "tokens": _tokens(runs[0]),
        "final_vote_share": curve[-1].vote_share,
        "ratio_mean": median(means) if means else None,
        "ratio_max": max((record.ratio_max for record in curve if record.ratio_max is not None), default=None),
        "same_texts": [rollout.text for rollout in runs[0].rollouts] == exact,
    }


def _tokens(trained: Trained) -> int:
    return sum(record.tokens for record in trained.curve)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    exact = rows[0]["ms_per_token"]
    lines = [
        "| rollouts | ms a token | exact / this | tokens | final vote | mean ratio | largest | same texts |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ratios = [f"{row[name]:.3f}" if row[name] is not None else "-" for name in ("ratio_mean", "ratio_max")]
        cells = [row["way"], f"{row['ms_per_token']:.2f}", f"{exact / row['ms_per_token']:.2f}", row["tokens"]]
        cells += [f"{row['final_vote_share']:.2f}", *ratios, "yes" if row["same_texts"] else "no"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="name, folder or hub id")
    parser.add_argument("--question", default="What is 7 times 8?")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--tokens", type=int, default=Recipe().max_new_tokens, help="at most, of a completion")
    parser.add_argument("--repeat", type=int, default=3, help="medians are of so many")
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: all")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    from elm_agent import models

    model = models.load(options.model, threads=options.threads)
    recipe = Recipe(steps=options.steps, max_new_tokens=options.tokens)
    rows = measure(model, options.question, recipe, options.repeat)
    model.close()
    print(json.dumps(rows, indent=2) if options.json else table(rows))


if __name__ == "__main__":
    main()
