"""A whole run: every protocol, task, method and seed of a plan, in one folder, resumable after a kill.

Knows nothing of terminals; what happens is told to an observer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from elm_agent.bench.evidence import orders
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
from elm_agent.bench.evidence.plan import Plan, answers_of, check, head_of, learns, of_whole_set, sets_of
from elm_agent.bench.evidence.walk import Walk
from elm_agent.protocols import LanguageModel, Observer, Task
from elm_agent.settings import Settings

OpenModel = Callable[[], AbstractContextManager[LanguageModel]]


def run_evidence(
    plan: Plan,
    settings: Settings,
    *,
    out: Path,
    open_model: OpenModel,
    environment: dict[str, Any],
    observe: Observer,
) -> tuple[GenerationLine, ...]:
    """Carry the plan out, or what is left of it, and return all lines of the folder.

    ``observe`` is told ``sets`` (the task sets with their faults), ``start`` (answers in all, and done), ``method``
    (what begins), ``answer`` and ``learn`` with each new line, and what learning tells.

    Raises:
        InputError, SettingsError: a plan that cannot be carried out, or another one than the folder's.
        StorageError: the folder cannot be written.
        ModelError: the model cannot be had.
    """
    check(plan, settings)
    sets = sets_of(plan, settings)
    told = {words: told_of(made) for words, made in sets.items()}
    observe("sets", {"sets": told})
    with RunFolder(out, head_of(plan, settings, told, environment), sets.values()) as folder:
        observe("start", {"answers": answers_of(plan, sets), "done": _done(plan, folder), "mended": folder.mended})
        with open_model() as model:
            fingerprint = model.fingerprint
            folder.bind({"id": fingerprint.id, **asdict(fingerprint)})
            _Run(plan, settings, folder, sets, model, observe).all()
        return tuple(folder.lines)


def _done(plan: Plan, folder: RunFolder) -> int:
    wanted = {(method, seed) for method in plan.methods for seed in plan.seeds}
    return sum(line.phase is Phase.ANSWER and (line.method, line.seed) in wanted for line in folder.lines)


class _Run:
    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        folder: RunFolder,
        sets: dict[str, TaskSet],
        model: LanguageModel,
        observe: Observer,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._folder = folder
        self._sets = sets
        self._model = model
        self._observe = observe
        self._tasks: dict[str, Task] = {}
        self._judging = {item: made for made in sets.values() if made.judge for item in made.items}

    def all(self) -> None:
        """Seeds outermost: a run that is stopped early has whole seeds of every method."""
        for seed in self._plan.seeds:
            for method in self._plan.methods:
                for what, work in self._stints(method, seed):
                    self._observe("method", {"method": method, "seed": seed, **what})
                    work()

    def _stints(self, method: str, seed: int) -> Iterator[tuple[dict[str, Any], Callable[[], None]]]:
        match self._plan.protocol:
            case Protocols.ONLINE:
                yield from self._online(method, seed)
            case Protocols.OFFLINE:
                yield from self._offline(method, seed)
            case Protocols.TRANSFER:
                yield from self._transfer(method, seed)

    def _online(self, method: str, seed: int) -> Iterator[tuple[dict[str, Any], Callable[[], None]]]:
        for words in self._plan.tasks:
            made = self._sets[words]
            walk = self._walk(made, made.name if learns(method) else None, method, seed)
            items = orders.shuffled(made.items, seed)

            def work(made: TaskSet = made, walk: Walk = walk, items: Any = items) -> None:
                orders.online(walk, lambda: self._open(made, method, seed), items, learns=learns(method))

            yield {"task": made.name}, work

    def _offline(self, method: str, seed: int) -> Iterator[tuple[dict[str, Any], Callable[[], None]]]:
        for words in self._plan.tasks:
            made = self._sets[words]
            walk = self._walk(made, made.name if learns(method) else None, method, seed)

            def work(made: TaskSet = made, walk: Walk = walk) -> None:
                if of_whole_set(method):
                    orders.whole(walk, lambda: self._open(made, method, seed), made.items)
                elif learns(method):
                    orders.offline(walk, lambda: self._open_maker(made, method, seed), made.items)
                else:
                    orders.online(walk, lambda: self._open(made, method, seed), made.items, learns=False)

            yield {"task": made.name}, work

    def _transfer(self, method: str, seed: int) -> Iterator[tuple[dict[str, Any], Callable[[], None]]]:
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

    def _walk(self, made: TaskSet, source: str | None, method: str, seed: int) -> Walk:
        return Walk(
            self._folder,
            method=method,
            seed=seed,
            task=made.name,
            source=source,
            judge=judge_of(made, self._task(made.kind)),
            observe=self._observe,
        )

    def _open(self, made: TaskSet, method: str, seed: int) -> Method:
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
