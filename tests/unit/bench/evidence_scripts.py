"""Methods that write down what they are given, and runs with a model that pretends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from elm_agent.bench.evidence.contract import (
    CandidateLine,
    GenerationLine,
    Item,
    Learned,
    Outcome,
    Phase,
    Protocols,
    Workplace,
)
from elm_agent.bench.evidence.plan import Plan
from elm_agent.bench.evidence.run import run_evidence
from elm_agent.protocols import LanguageModel
from elm_agent.settings import Settings
from elm_agent.testing.doubles import FakeModel

SETTINGS = Settings(max_new_tokens=64)


class Killed(BaseException):
    """Stands for the end of the process."""


class Scripted:
    """Answers with how many questions it has learned from; ``log`` outlives it."""

    learns = True
    sees_answers = False
    log: list[tuple[Any, ...]] = []  # noqa: RUF012 - what tests look at
    fails: dict[str, Exception] = {}  # noqa: RUF012 - by "answer" or "learn" and item id

    def __init__(self, name: str, workplace: Workplace) -> None:
        self.name = name
        self._place = workplace
        self.learned: list[str] = []
        self.log.append(("open", name, workplace.seed))

    def answer(self, item: Item) -> Outcome:
        assert item.answer == "", "a reference was shown"
        if error := self.fails.get(f"answer {item.id}"):
            raise error
        self.log.append(("answer", item.id, tuple(self.learned)))
        said = str(len(self.learned))
        made = CandidateLine(role="zero_shot", text=said, answer=said, tokens=1)
        return Outcome(answer=said, text=said, candidates=(made,), tokens=1, detail={"known": len(self.learned)})

    def learn(self, item: Item, outcome: Outcome | None) -> Learned:
        assert item.answer == "", "a reference was shown"
        if error := self.fails.get(f"learn {item.id}"):
            raise error
        assert outcome is None or all(one.correct is None for one in outcome.candidates), "a verdict was shown"
        self.log.append(("learn", item.id, None if outcome is None else outcome.answer))
        self.learned.append(item.id)
        return Learned(memory_id=f"m{item.id}", kept={"id": item.id}, tokens=5)

    def restore(self, item: Item, learned: Learned) -> None:
        self.log.append(("restore", item.id, dict(learned.kept)))
        self.learned.append(learned.kept["id"])

    def close(self) -> None:
        self.log.append(("close", self.name))


class ScriptedMaker:
    """The memory of an item answers with its id."""

    sees_answers = False
    fails: dict[str, Exception] = {}  # noqa: RUF012 - "learn" an item, or "use" it for another

    def __init__(self, name: str, workplace: Workplace) -> None:
        self.name = name
        del workplace

    def learn(self, item: Item) -> Learned:
        if error := self.fails.get(f"learn {item.id}"):
            raise error
        return Learned(memory_id=item.id)

    def answer_with(self, learner: Item, items: Sequence[Item]) -> list[Outcome]:
        for one in items:
            if error := self.fails.get(f"use {learner.id} {one.id}"):
                raise error
        return [Outcome(answer=learner.id, text=f"{learner.id} for {item.id}") for item in items]

    def close(self) -> None:
        """Nothing is open."""


class Told:
    """An observer; ends the process after ``kill_after`` lines."""

    def __init__(self, kill_after: int | None = None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._left = kill_after

    def __call__(self, name: str, detail: dict[str, Any]) -> None:
        self.events.append((name, detail))
        if self._left is not None and name in ("answer", "learn"):
            self._left -= 1
            if self._left == 0:
                raise Killed

    def __getitem__(self, name: str) -> dict[str, Any]:
        return next(detail for told, detail in self.events if told == name)


def plan_of(*methods: str, **more: Any) -> Plan:
    given: dict[str, Any] = {"protocol": Protocols.ONLINE, "tasks": ("arithmetic",), "limit": 4}
    return Plan(methods=methods, **given | more)


def carry_out(
    plan: Plan,
    out: Path,
    *,
    model: LanguageModel | None = None,
    settings: Settings = SETTINGS,
    observe: Told | None = None,
    together: int = 1,
) -> tuple[GenerationLine, ...]:
    @contextmanager
    def opened() -> Iterator[LanguageModel]:
        yield model or FakeModel()

    environment = {"command": "a test"}
    return run_evidence(
        plan,
        settings,
        out=out,
        open_model=opened,
        environment=environment,
        observe=observe or Told(),
        together=together,
    )


def timeless(lines: Sequence[GenerationLine]) -> list[GenerationLine]:
    """Without what no two runs have in common."""
    return [
        replace(line, at="", seconds=0.0, candidates=tuple(replace(one, seconds=None) for one in line.candidates))
        for line in lines
    ]


def answers(lines: Sequence[GenerationLine]) -> list[GenerationLine]:
    return [line for line in lines if line.phase is Phase.ANSWER]
