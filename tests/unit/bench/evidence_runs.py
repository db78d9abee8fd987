"""Run folders for tests of figures and reports: lines as a run stores them, written by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from elm_agent.bench.evidence.contract import FORMAT, CandidateLine, GenerationLine, Item, Phase

TASK = "sums"


def item(number: int, *, question: str | None = None, family: str = "easy") -> Item:
    return Item(id=f"q{number}", question=question or f"What is {number} + 1?", answer=str(number + 1), family=family)


def answer(method: str, number: int, correct: bool | None, *, seed: int = 0, **more: Any) -> GenerationLine:
    """An answered question; ``correct`` None: a failure."""
    given = {
        "phase": Phase.ANSWER,
        "method": method,
        "seed": seed,
        "task": TASK,
        "source": None if method == "zero_shot" else TASK,
        "position": number,
        "item_id": f"q{number}",
        "family": "easy",
        "split": "test",
        "answer": "1",
        "text": "1",
        "correct": correct,
        "failure": "the model stopped" if correct is None else None,
        "tokens": 10,
        "prompt_tokens": 20,
        "seconds": 0.5,
    }
    return GenerationLine(**given | more)


def learn(method: str, number: int, *, seed: int = 0, **more: Any) -> GenerationLine:
    given = {
        "phase": Phase.LEARN,
        "answer": None,
        "text": None,
        "failure": None,
        "memory_id": f"m{number}",
        "tokens": 100,
        "seconds": 4.0,
    }
    return answer(method, number, None, seed=seed, **given | more)


def both(zero_shot: bool | None, memory: bool | None) -> tuple[CandidateLine, ...]:
    """A plain and a memory candidate that were judged so."""
    return (
        CandidateLine(role="zero_shot", text="", answer="1", correct=zero_shot),
        CandidateLine(role="memory", text="", answer="2", correct=memory),
    )


def write_run(
    folder: Path, lines: Iterable[GenerationLine], *, items: Sequence[Item] | None = None, **head: Any
) -> Path:
    """A run folder of these lines."""
    stored = list(lines)
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "format": FORMAT,
        "protocol": "online",
        "methods": list(dict.fromkeys(line.method for line in stored)),
        "seeds": sorted({line.seed for line in stored}),
        "task_sets": {"sums:20": {"name": TASK, "questions": 20, "faults": [], "duplicates": []}},
        "settings": {"task": "math", "learning": {"steps": 10}},
        "environment": {"command": "elm-agent bench online --limit 20", "date": "2026-11-21T12:00:00+00:00"},
        "model": {"name": "tiny", "id": "sha256:0"},
    }
    (folder / "run.json").write_text(json.dumps(told | head))
    kept = [item(number) for number in sorted({line.position for line in stored})] if items is None else items
    rows = [{"task": TASK, **asdict(one)} for one in kept]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = [{"line": n, "question_digest": "x", **line.to_json()} for n, line in enumerate(stored, 1)]
    (folder / "generations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def whole_stream(*, questions: int = 20, seeds: int = 3) -> list[GenerationLine]:
    """An online run of three methods, with learning, routes, keys, curves and a failure."""
    lines = []
    for seed in range(seeds):
        rng = random.Random(seed)
        plain = [rng.random() < 0.4 for _ in range(questions)]
        helped = [right or rng.random() < 0.5 for right in plain]
        lines += [answer("zero_shot", n, right, seed=seed, tokens=8) for n, right in enumerate(plain)]
        lines += [answer("icl", n, right, seed=seed, memory_id="t0") for n, right in enumerate(plain[::-1])]
        for n in range(questions):
            route = "agreed" if plain[n] == helped[n] else "memory" if n % 5 else "zero_shot"
            right = None if (seed, n) == (1, 3) else plain[n] if route == "zero_shot" else helped[n]
            served = {"memory_id": f"m{n // 3}", "memory_item": f"q{n // 3}", "route": route, "similarity": 0.9}
            lines.append(
                answer("elm_input", n, right, seed=seed, candidates=both(plain[n], helped[n]), tokens=16, **served)
            )
            key = tuple(rng.gauss(n % 2, 0.3) for _ in range(6))
            curve = tuple({"step": step, "vote_share": min(1.0, 0.4 + 0.1 * step)} for step in range(4 + n % 2))
            lines.append(learn("elm_input", n, seed=seed, key=key, curve=curve, state="active"))
    return lines


def whole_matrix(*, questions: int = 8, seeds: int = 2) -> list[GenerationLine]:
    """An offline run: each memory on every question, beside zero-shot."""
    lines = []
    for seed in range(seeds):
        rng = random.Random(100 + seed)
        plain = [rng.random() < 0.5 for _ in range(questions)]
        lines += [answer("zero_shot", n, right, seed=seed) for n, right in enumerate(plain)]
        for learner in range(questions):
            key, curve = (float(learner), rng.random(), 1.0), ({"vote_share": 0.5}, {"vote_share": 0.75})
            lines.append(learn("elm", learner, seed=seed, key=key, curve=curve))
            for n in range(questions):
                made = {"learner": f"q{learner}", "memory_id": f"m{learner}", "memory_item": f"q{learner}"}
                lines.append(answer("elm", n, rng.random() < 0.6, seed=seed, **made))
    return lines
