"""One method and one seed on its way through questions: each is answered and learned from once, whatever happens.

What is stored already is not done again; a method that was interrupted is given back what it had learned. References
stay here: a method gets an item without its answer. Knows nothing of the order of the questions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from elm_agent.bench.evidence.beside import Stop
from elm_agent.bench.evidence.clock import SharedClock
from elm_agent.bench.evidence.contract import (
    SHARED,
    CandidateLine,
    GenerationLine,
    Item,
    Learned,
    Maker,
    Method,
    Notes,
    Outcome,
    Phase,
    Prepares,
)
from elm_agent.bench.evidence.folder import RunFolder
from elm_agent.bench.evidence.judging import Judge, judged
from elm_agent.errors import ModelUnavailable, StorageError
from elm_agent.memory.answering import describe
from elm_agent.protocols import Observer
from elm_agent.records import utcnow

logger = logging.getLogger(__name__)


class Walk:
    """Told to ``observe``: ``answer`` and ``learn`` with the ``line``, when it is stored. Safe from any thread.

    Args:
        task, source: names of the sets that the questions and the memories come from.
        seedless: an answer is the same for every seed, so it is generated for one of them.
        clock: what all that goes on side by side is timed by.
        stop: once it is told, nothing is begun any more, and no failure stored: everything here raises ``Stopped``.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        method: str,
        seed: int,
        task: str,
        source: str | None,
        judge: Judge,
        observe: Observer,
        seedless: bool,
        clock: SharedClock,
        stop: Stop,
    ) -> None:
        self._folder = folder
        self._method = method
        self._seed = seed
        self._task = task
        self._source = source
        self._judge = judge
        self._observe = observe
        self._seedless = seedless
        self._clock = clock
        self._stop = stop

    def line(self, phase: Phase, position: int, item: Item, learner: str | None = None) -> GenerationLine:
        """The line that is to be filled in."""
        return GenerationLine(
            phase=phase,
            method=self._method,
            seed=self._seed,
            task=self._task,
            source=self._source,
            position=position,
            item_id=item.id,
            family=item.family,
            split=item.split,
            part=item.part,
            learner=learner,
        )

    def stored(self, phase: Phase, position: int, item: Item, learner: str | None = None) -> GenerationLine | None:
        """What happened already."""
        return self._folder.find(self.line(phase, position, item, learner))

    def restore(self, method: Method, position: int, item: Item) -> bool:
        """Give back what was learned from an item; False when nothing is stored of it yet."""
        line = self.stored(Phase.LEARN, position, item)
        if line is not None and line.failure is None:
            method.restore(_shown(item, method), learned_of(line))
        return line is not None

    def prepare(self, method: Method | Maker, items: Sequence[Item]) -> None:
        """Tell a method that wants to know what it will learn from."""
        if isinstance(method, Prepares) and items:
            method.prepare([_shown(item, method) for item in items])

    def answer(self, method: Method, position: int, item: Item) -> GenerationLine:
        """The line of the answered item, stored."""
        empty = self.line(Phase.ANSWER, position, item)
        line = self._folder.find(empty)
        if line is None and self._seedless and (there := self._folder.of_any_seed(empty)) is not None:
            line = self._keep(shared(there, empty), item)
        if line is None:
            line = self._timed(empty, lambda: _answered(empty, method.answer(_shown(item, method))))
            line = self._keep(judged(line, item, self._judge), item)
        if isinstance(method, Notes):
            method.note(_shown(item, method), outcome_of(line))
        return line

    def learn(self, method: Method, position: int, item: Item, answered: GenerationLine | None = None) -> None:
        """Learn from an item, which may have been answered, unless that is stored."""
        empty = self.line(Phase.LEARN, position, item)
        if self._folder.find(empty) is None:
            outcome = None if answered is None or answered.failure is not None else outcome_of(answered)
            line = self._timed(empty, lambda: _learned(empty, method.learn(_shown(item, method), outcome)))
            self._keep(line, item)

    def make(self, maker: Maker, position: int, item: Item) -> GenerationLine:
        """Offline: the line of the memory of one item, stored."""
        empty = self.line(Phase.LEARN, position, item)
        if (line := self._folder.find(empty)) is None:
            line = self._timed(empty, lambda: _learned(empty, maker.learn(_shown(item, maker))))
            return self._keep(line, item)
        return line

    def answer_with(self, maker: Maker, learner: Item, batch: list[tuple[int, Item]]) -> None:
        """Offline: the answers of several items with the memory of ``learner``, stored."""
        empty = [self.line(Phase.ANSWER, position, item, learner.id) for position, item in batch]
        missing = [(line, item) for line, (_, item) in zip(empty, batch, strict=True) if not self._folder.find(line)]
        if not missing:
            return
        self._stop.check()
        started = self._clock.read()
        try:
            with self._clock.working():
                outcomes = maker.answer_with(_shown(learner, maker), [_shown(item, maker) for _, item in missing])
            lines = [_answered(line, made) for (line, _), made in zip(missing, outcomes, strict=True)]
        except Exception as error:
            _raise_what_ends_the_run(error)
            if len(batch) > 1:  # one question may have spoilt it for all
                for one in batch:
                    self.answer_with(maker, learner, [one])
                return
            logger.warning("%s failed on %s", self._method, missing[0][0].item_id, exc_info=error)
            lines = [replace(line, failure=describe(error)) for line, _ in missing]
        each = (self._clock.read() - started) / len(missing)
        for line, (_, item) in zip(lines, missing, strict=True):
            self._keep(judged(_stamped(line, each), item, self._judge), item)

    def _timed(self, empty: GenerationLine, work: Callable[[], GenerationLine]) -> GenerationLine:
        """The line that ``work`` makes, or its failure; with the time that it took where the method does not say."""
        self._stop.check()
        with self._clock.working():
            started = self._clock.read()
            try:
                line = work()
            except Exception as error:
                _raise_what_ends_the_run(error)
                logger.warning("%s failed to %s %s", empty.method, empty.phase, empty.item_id, exc_info=error)
                line = replace(empty, failure=describe(error))
            return _stamped(line, self._clock.read() - started)

    def _keep(self, line: GenerationLine, item: Item) -> GenerationLine:
        if line.failure is not None:
            self._stop.check()  # what failed because the run ends is no failure
        stored = self._folder.add(line, item.digest)
        self._observe(str(stored.phase), {"line": stored})
        return stored


def shared(there: GenerationLine, empty: GenerationLine) -> GenerationLine:
    """The answer of another seed under the name of ``empty``, charged with what it cost there, and marked."""
    detail = {SHARED: there.seed, **there.detail}  # of one that was shared itself: where it was generated
    return replace(there, seed=empty.seed, position=empty.position, detail=detail, at=_now())


def outcome_of(line: GenerationLine) -> Outcome:
    """What the method returned, of its line; nothing in it says what is right."""
    candidates = tuple(replace(one, correct=None) for one in line.candidates)
    return Outcome(**_common(Outcome, line) | {"candidates": candidates, "text": line.text or ""})


def learned_of(line: GenerationLine) -> Learned:
    """What the method returned, of its line."""
    return Learned(**_common(Learned, line) | {"texts": line.candidates})


def _common(kind: type[Outcome] | type[Learned], line: GenerationLine) -> dict[str, Any]:
    return {one.name: getattr(line, one.name) for one in fields(kind) if hasattr(line, one.name)}


def _answered(line: GenerationLine, outcome: Outcome) -> GenerationLine:
    told = {one.name: getattr(outcome, one.name) for one in fields(outcome)}
    candidates = tuple(replace(one, correct=None) for one in outcome.candidates)
    return replace(line, **told | {"seconds": outcome.seconds or 0.0, "candidates": candidates})


def _learned(line: GenerationLine, learned: Learned) -> GenerationLine:
    told = {one.name: getattr(learned, one.name) for one in fields(learned) if one.name != "texts"}
    texts: tuple[CandidateLine, ...] = learned.texts
    return replace(line, **told | {"seconds": learned.seconds or 0.0, "candidates": texts})


def _stamped(line: GenerationLine, seconds: float) -> GenerationLine:
    """The line with the time of day, and ``seconds`` where the method did not say how many."""
    return replace(line, seconds=line.seconds or round(seconds, 4), at=_now())


def _now() -> str:
    return utcnow().isoformat(timespec="seconds")


def _raise_what_ends_the_run(error: Exception) -> None:
    """A disk that is full or a model that is gone would fail every question that is left."""
    if isinstance(error, StorageError | ModelUnavailable):
        raise error


def _shown(item: Item, method: Any) -> Item:
    return item if method.sees_answers else item.blind()
