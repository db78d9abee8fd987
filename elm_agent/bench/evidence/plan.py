"""What a run is to do, checked before anything is opened, and what makes two runs the same one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from elm_agent.bench.evidence.contract import Protocols, TaskSet
from elm_agent.bench.evidence.judging import PROMPTS
from elm_agent.bench.evidence.methods import LEARNING_NOTHING, MAKERS, SEEDLESS, WHOLE_SET, factory_of
from elm_agent.bench.evidence.methods.variants import recipe_and_epochs, recipe_of, settings_of
from elm_agent.bench.evidence.task_sets import load_task_set
from elm_agent.errors import InputError
from elm_agent.settings import Settings

ELSEWHERE = frozenset(
    {
        *("model", "gguf_file", "threads", "cache_dir", "offline", "max_batch_rows", "join_window_ms"),
        "prefix_cache_mb",
        "log_format",
        *("home", "database_url", "tensors", "tensor_options", "tensor_cache_mb", "tensor_cache_hours"),
        *("index", "exact_limit", "namespace", "shared_namespaces", "learn"),
        *("worker", "encryption", "eviction", "maintenance", "ray"),
    }
)
"""Settings that say where and how fast, not what comes out; the model is compared by its fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``tasks`` and ``sources``: words of ``task_sets``; ``sources`` only of transfer."""

    protocol: Protocols
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    sources: tuple[str, ...] = ()
    limit: int | None = None  # questions of each set
    task_seed: int = 0  # of sets that are generated
    prompt: str = "short"  # one of ``judging.PROMPTS``

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.sources, *self.tasks)))


def learns(method: str) -> bool:
    """Whether a method learns from what it answers."""
    return method.partition(":")[0] not in LEARNING_NOTHING


def seedless(method: str) -> bool:
    """Whether a method answers alike for every seed."""
    return method.partition(":")[0] in SEEDLESS


def stands_alone(method: str, settings: Settings) -> bool:
    """Whether a method holds so much that there is to be one of it at a time: a network of its own."""
    words = method.partition(":")[2].split("+")
    judge = "prm" if "prm" in words else settings.verification.verifier
    return of_whole_set(method) or "full" in words or judge == "prm"


def of_whole_set(method: str) -> bool:
    """Whether a method learns from the whole set before it answers."""
    return method.partition(":")[0] in WHOLE_SET


def check(plan: Plan, settings: Settings) -> None:
    """Raise ``InputError`` or ``SettingsError`` for a plan that cannot be carried out."""
    for name, given in (("--tasks", plan.tasks), ("--methods", plan.methods), ("--seeds", plan.seeds)):
        if not given:
            raise InputError(f"{name} names nothing: expected at least one")
        if len(set(given)) < len(given):
            raise InputError(f"{name} names something twice: {', '.join(map(str, given))}")
    if plan.limit is not None and plan.limit < 1:
        raise InputError(f"--limit is {plan.limit}: expected at least 1")
    if plan.prompt not in PROMPTS:
        raise InputError(f"--prompt is {plan.prompt!r}: expected {' or '.join(PROMPTS)}")
    if plan.protocol is Protocols.TRANSFER and not plan.sources:
        raise InputError("transfer needs --source: the tasks that are learned from")
    for name in plan.methods:
        _check_method(name, plan.protocol, settings)


def _check_method(name: str, protocol: Protocols, settings: Settings) -> None:
    factory_of(name)
    base = name.partition(":")[0]
    if protocol is Protocols.OFFLINE:
        if base not in {*MAKERS, *LEARNING_NOTHING, *WHOLE_SET}:
            able = ", ".join(sorted({*MAKERS, *LEARNING_NOTHING, *WHOLE_SET}))
            raise InputError(f"method {name!r} makes no memories of one question each: offline can have {able}")
        if base in WHOLE_SET:
            recipe_and_epochs(name, settings, seed=0)
        elif base in MAKERS:
            recipe_of(name, settings, seed=0)
    elif base in WHOLE_SET:
        raise InputError(f"method {name!r} needs the whole set at once: `elm-agent bench offline` has it")
    elif base.partition("_")[0] in ("elm", "oracle"):
        settings_of(name, settings, seed=0)


def sets_of(plan: Plan, settings: Settings) -> dict[str, TaskSet]:
    """The sets of a plan by the words that name them. Raises ``InputError``."""
    sets = {
        words: load_task_set(words, limit=plan.limit, seed=plan.task_seed, kind=settings.task) for words in plan.words
    }
    kinds = sorted({made.kind for made in sets.values()})
    if plan.protocol is Protocols.TRANSFER and len(kinds) > 1:
        raise InputError(f"transfer is between tasks that are asked alike; got tasks of kind {' and '.join(kinds)}")
    names = [made.name for made in sets.values()]
    if len(set(names)) < len(names):
        raise InputError(f"two task sets have one name: {', '.join(names)}")
    return sets


def head_of(plan: Plan, settings: Settings, sets: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    """What run.json holds, without the model. ``sets``: by words, as ``folder.told_of`` tells them."""
    told = asdict(plan)
    methods, seeds = told.pop("methods"), told.pop("seeds")
    return {
        "protocol": told.pop("protocol").value,
        "plan": told,
        "settings": settings.model_dump(mode="json", exclude=set(ELSEWHERE)),
        "task_sets": sets,
        "methods": list(methods),
        "seeds": list(seeds),
        "environment": environment,
    }


def learnings_of(plan: Plan, sets: dict[str, TaskSet]) -> int:
    """How many times the run learns from a question in all."""
    words = plan.sources if plan.protocol is Protocols.TRANSFER else plan.tasks
    learners = sum(map(learns, plan.methods))
    return learners * len(plan.seeds) * sum(len(sets[one].items) for one in words)


def answers_of(plan: Plan, sets: dict[str, TaskSet]) -> int:
    """How many answers the run has in all; those of memories that fail are never given."""
    sizes = {words: len(made.items) for words, made in sets.items()}
    total = 0
    for method in plan.methods:
        asked = sum(sizes[words] for words in plan.tasks)
        if plan.protocol is Protocols.OFFLINE and learns(method) and not of_whole_set(method):
            asked = sum(sizes[words] ** 2 for words in plan.tasks)
        elif plan.protocol is Protocols.TRANSFER and learns(method):
            asked = sum(
                sizes[source] + sum(sizes[words] for words in plan.tasks if words != source)
                for source in plan.sources
            )
        total += asked * len(plan.seeds)
    return total
