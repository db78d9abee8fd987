"""A whole run: every protocol, task, method and seed of a plan, in one folder, resumable after a kill.

One method comes after the other. Seeds of a method need nothing of each other, and neither do questions of a method
that learns nothing, so that several go on side by side: their rows share the engine's batches. Knows nothing of
terminals; what happens is told to an observer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from elm_agent.bench.evidence import orders
from elm_agent.bench.evidence.beside import Stop, Work, side_by_side
from elm_agent.bench.evidence.clock import SharedClock
from elm_agent.bench.evidence.contract import (
    GenerationLine,
    Item,
    Maker,
    Method,
    Phase,
    Protocols,
    TaskSet,
    Workplace,
)
from elm_agent.bench.evidence.folder import RunFolder, told_of
from elm_agent.bench.evidence.judging import judge_of, task_of
from elm_agent.bench.evidence.methods import MAKERS, open_method
from elm_agent.bench.evidence.plan import (
    Plan,
    answers_of,
    check,
    head_of,
    learnings_of,
    learns,
    of_whole_set,
    seedless,
    sets_of,
    stands_alone,
)
from elm_agent.bench.evidence.walk import Walk
from elm_agent.protocols import LanguageModel, Observer, Task
from elm_agent.settings import Settings

OpenModel = Callable[[], AbstractContextManager[LanguageModel]]
Stint = tuple[dict[str, Any], Work]
"""What an observer is told when a part of the run begins, and the part."""


def run_evidence(
    plan: Plan,
    settings: Settings,
    *,
    out: Path,
    open_model: OpenModel,
    environment: dict[str, Any],
    observe: Observer,
    together: int = 1,
) -> tuple[GenerationLine, ...]:
    """Carry the plan out, or what is left of it, and return all lines of the folder.

    ``together``: most seeds of a method, or questions of one that learns nothing, at a time. The results are the
    same; lines of several come in the order in which they happen.

    ``observe``, by one thread at a time, is told ``sets`` (the task sets with their faults), ``start`` (answers and
    learnings in all, and done), ``method`` (what begins), ``answer`` and ``learn`` with each new line, and what
    learning tells.

    Raises:
        InputError, SettingsError: a plan that cannot be carried out, or another one than the folder's.
        StorageError: the folder cannot be written.
        ModelError: the model cannot be had.
    """
    check(plan, settings)
    sets = sets_of(plan, settings)
    observe = _one_at_a_time(observe)
    told = {words: told_of(made) for words, made in sets.items()}
    observe("sets", {"sets": told})
    with RunFolder(out, head_of(plan, settings, told, environment), sets.values()) as folder:
        observe("start", _start(plan, sets, folder))
        with open_model() as model:
            fingerprint = model.fingerprint
            folder.bind({"id": fingerprint.id, **asdict(fingerprint)})
            _Run(plan, settings, folder, sets, model, observe, together).all()
        return tuple(folder.lines)


def _one_at_a_time(observe: Observer) -> Observer:
    telling = threading.Lock()

    def tell(name: str, detail: dict[str, Any]) -> None:
        with telling:
            observe(name, detail)

    return tell


def _start(plan: Plan, sets: dict[str, TaskSet], folder: RunFolder) -> dict[str, Any]:
    wanted = {(method, seed) for method in plan.methods for seed in plan.seeds}
    there = [line.phase for line in folder.lines if (line.method, line.seed) in wanted]
    return {
        "answers": answers_of(plan, sets),
        "done": there.count(Phase.ANSWER),
        "learnings": learnings_of(plan, sets),
        "learned": there.count(Phase.LEARN),
        "mended": folder.mended,
    }


class _Run:
    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        folder: RunFolder,
        sets: dict[str, TaskSet],
        model: LanguageModel,
        observe: Observer,
        together: int,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._folder = folder
        self._sets = sets
        self._model = model
        self._observe = observe
        self._together = together
        self._clock = SharedClock()
        self._stop = Stop()
        self._opening = threading.Lock()  # banks are made by a library that bears one thread
        self._tasks: dict[str, Task] = {}
        self._judging = {item: made for made in sets.values() if made.judge for item in made.items}

    def all(self) -> None:
        """Methods outermost; of each, one part after the other of all seeds."""
        for method in self._plan.methods:
            stints = [list(self._stints(method, seed)) for seed in self._plan.seeds]
            for part in zip(*stints, strict=True):
                seeds = zip(self._plan.seeds, part, strict=True)
                works = [partial(self._begin, method, seed, stint) for seed, stint in seeds]
                together = self._at_once(method) if learns(method) else 1  # else its questions are side by side
                side_by_side(works, together=together, stop=self._stop)

    def _begin(self, method: str, seed: int, stint: Stint) -> None:
        what, work = stint
        self._observe("method", {"method": method, "seed": seed, **what})
        work()

    def _at_once(self, method: str) -> int:
        return 1 if stands_alone(method, self._settings) else self._together

    def _stints(self, method: str, seed: int) -> Iterator[Stint]:
        match self._plan.protocol:
            case Protocols.ONLINE:
                yield from self._online(method, seed)
            case Protocols.OFFLINE:
                yield from self._offline(method, seed)
            case Protocols.TRANSFER:
                yield from self._transfer(method, seed)

    def _online(self, method: str, seed: int) -> Iterator[Stint]:
        for words in self._plan.tasks:
            made = self._sets[words]
            walk = self._walk(made, made.name if learns(method) else None, method, seed)
            items = orders.shuffled(made.items, seed)

            def work(made: TaskSet = made, walk: Walk = walk, items: Any = items) -> None:
                if learns(method):
                    orders.online(walk, lambda: self._open(made, method, seed), items)
                else:
                    self._in_any_order(walk, made, items, method, seed)

            yield {"task": made.name}, work

    def _offline(self, method: str, seed: int) -> Iterator[Stint]:
        for words in self._plan.tasks:
            made = self._sets[words]
            walk = self._walk(made, made.name if learns(method) else None, method, seed)

            def work(made: TaskSet = made, walk: Walk = walk) -> None:
                if of_whole_set(method):
                    orders.whole(walk, lambda: self._open(made, method, seed), made.items)
                elif learns(method):
                    orders.offline(walk, lambda: self._open_maker(made, method, seed), made.items)
                else:
                    self._in_any_order(walk, made, made.items, method, seed)

            yield {"task": made.name}, work

    def _transfer(self, method: str, seed: int) -> Iterator[Stint]:
        if not learns(method):
            yield from self._online(method, seed)
            return
        for words in self._plan.sources:
            source = self._sets[words]
            targets = [self._sets[other] for other in self._plan.tasks if other != words]
            walks = [(self._walk(made, source.name, method, seed), made.items) for made in targets]
            study = self._walk(source, source.name, method, seed)

            def work(source: TaskSet = source, study: Walk = study, walks: Any = walks) -> None:
                items = orders.shuffled(source.items, seed)
                orders.transfer(study, items, lambda: self._open(source, method, seed), walks)

            yield {"source": source.name, "tasks": [made.name for made in targets]}, work

    def _in_any_order(self, walk: Walk, made: TaskSet, items: Sequence[Item], method: str, seed: int) -> None:
        together = self._at_once(method)
        orders.in_any_order(walk, lambda: self._open(made, method, seed), items, together=together, stop=self._stop)

    def _walk(self, made: TaskSet, source: str | None, method: str, seed: int) -> Walk:
        return Walk(
            self._folder,
            method=method,
            seed=seed,
            task=made.name,
            source=source,
            judge=judge_of(made, self._task(made.kind)),
            observe=self._observe,
            seedless=seedless(method),
            clock=self._clock,
            stop=self._stop,
        )

    def _open(self, made: TaskSet, method: str, seed: int) -> Method:
        with self._opening:
            return open_method(method, self._place(made, method, seed))

    def _open_maker(self, made: TaskSet, method: str, seed: int) -> Maker:
        return MAKERS[method.partition(":")[0]](method, self._place(made, method, seed))

    def _place(self, made: TaskSet, method: str, seed: int) -> Workplace:
        """``made``: the set that is learned from."""
        task = self._task(made.kind)
        return Workplace(
            model=self._model,
            task=task,
            settings=self._settings,
            seed=seed,
            folder=self._folder.work(made.name, method, str(seed)),
            shared=self._folder.work("trained"),
            observe=self._observe,
            judge=partial(self._judge, task),
            clock=self._clock,
            stop=self._stop,
        )

    def _judge(self, task: Task, item: Item, answer: str) -> bool:
        """By the set that the item is of; a method may be asked questions of several."""
        made = self._judging.get(item)
        return task.equivalent(answer, item.answer) if made is None else judge_of(made, task)(item, answer)

    def _task(self, kind: str) -> Task:
        """One for each kind: what it compared once it remembers."""
        if kind not in self._tasks:
            self._tasks[kind] = task_of(kind, self._plan.prompt)
        return self._tasks[kind]
