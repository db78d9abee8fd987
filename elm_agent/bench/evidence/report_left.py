"""What a run that was stopped early has not answered yet, by its plan. Pure functions of a stored run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from elm_agent.bench.evidence.contract import Phase, Protocols, StoredRun
from elm_agent.bench.evidence.methods import LEARNING_NOTHING, MAKERS

Stint = tuple[str, str | None, str, int]
"""Task, the other set that memories come from, method, seed."""


def unfinished(run: StoredRun) -> Iterator[str]:
    """One sentence for what lacks answers by the plan: method, task, and the seeds that lack as many."""
    answers = [line for line in run.lines if line.phase is Phase.ANSWER]
    done = Counter(
        (line.task, line.source if line.source != line.task else None, line.method, line.seed) for line in answers
    )
    methods = run.run.get("methods") or dict.fromkeys(line.method for line in answers)
    seeds = run.run.get("seeds") or sorted({line.seed for line in answers})
    for method in methods:
        lacking: dict[str, list[int]] = {}
        for seed in seeds:
            for (task, source), whole in _wanted(run, method, seed):
                if (count := done[task, source, method, seed]) < whole:
                    where = task if source is None else f"{task}, memories from {source}"
                    lacking.setdefault(f"{count} of {whole} answers on {where}", []).append(seed)
        for what, alike in lacking.items():
            yield f"{method}, seed{'s' * (len(alike) > 1)} {', '.join(map(str, alike))}: {what}"


def _wanted(run: StoredRun, method: str, seed: int) -> Iterator[tuple[tuple[str, str | None], int]]:
    sizes = Counter(task for task, _ in run.items)
    plan, sets = run.run.get("plan") or {}, run.run.get("task_sets") or {}
    tasks, sources = (
        [sets[words]["name"] for words in plan.get(name) or () if words in sets] for name in ("tasks", "sources")
    )
    base = method.partition(":")[0]
    match run.run.get("protocol"):
        case Protocols.TRANSFER if base not in LEARNING_NOTHING:
            for source in sources:
                yield (source, None), sizes[source]
                yield from (((task, source), sizes[task]) for task in tasks if task != source)
        case Protocols.OFFLINE if base in MAKERS:
            failed = Counter(
                line.task
                for line in run.lines
                if line.phase is Phase.LEARN
                and line.failure is not None
                and (line.method, line.seed) == (method, seed)
            )
            yield from (((task, None), sizes[task] * (sizes[task] - failed[task])) for task in tasks or sizes)
        case _:
            yield from (((task, None), sizes[task]) for task in tasks or sizes)
