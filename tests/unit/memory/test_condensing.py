"""Merging and distilling: who is put to whom, what a trial decides, and that everything else stays as it was."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elm_agent.errors import InputError, JobCancelled, NotFound, SettingsError, TrainingError
from elm_agent.memory.condensing import CONDENSE_STEPS, CondenseReport, Rules, Tools, condense
from elm_agent.memory.merging import groups_of, lineage
from elm_agent.memory.probe import Probe
from elm_agent.protocols import Trained
from elm_agent.records import (
    EventKind,
    KeyKind,
    MemoryKeys,
    MemoryState,
    Recipe,
    Route,
    StepRecord,
    UseOutcome,
    UseRecord,
    new_id,
    utcnow,
)
from elm_agent.runtime import condense_bank, open_runtime
from elm_agent.settings import Settings
from elm_agent.softprompt import SoftPrompt
from elm_agent.storage.adopt import Adopted
from elm_agent.storage.bank import Bank
from elm_agent.storage.health.doctor import examine
from elm_agent.storage.ledger.chain import verify
from elm_agent.storage.sql.database import Database
from elm_agent.storage.tensors.local import LocalTensors
from elm_agent.tasks import get_task
from elm_agent.testing.doubles import WIDTH, FakeModel
from elm_agent.testing.tiny import write_tiny_model

NEAR = Rules(merge=0.99)
REGION = Rules(distil=0.9, steps=3)
ANSWERS = {"What is 1 + 1?": "2", "What is 1 + 2?": "3", "What is 1 + 3?": "4", "What is 1 + 4?": "5"}
STEP = StepRecord(
    step=0,
    majority_answer=None,
    vote_share=0.5,
    reward_mean=0.5,
    loss=1.0,
    kl=1.0,
    grad_norm=1.0,
    clip_fraction=0.0,
    tokens=4,
    finished_share=0.0,
    seconds_rollout=0.0,
    seconds_update=0.1,
)
NEW = "unnamed"  # what a memory that is not stored yet is called by the model
_numbers = itertools.count(1)


@pytest.fixture
def either_bank(database_url: str, tmp_path: Path) -> Iterator[Bank]:
    bank = Bank(Database.open(database_url, busy_seconds=20), LocalTensors(tmp_path / "tensors"), index="exact")
    bank.bind("ns", FakeModel().fingerprint)
    yield bank
    bank.close()


def key(degrees: float) -> np.ndarray:
    found = np.zeros(WIDTH, dtype=np.float32)
    found[:2] = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return found


def learnt(bank: Bank, question: str, degrees: float, **more: Any) -> str:
    """An active memory, with a clear vote for the right answer unless told otherwise."""
    pinned, rows = more.pop("pinned", False), more.pop("rows", 2)
    given: dict[str, Any] = {
        "task": "number",
        "prompt": SoftPrompt(torch.full((rows, WIDTH), float(next(_numbers)))),
        "keys": MemoryKeys(input=key(degrees), kv=None),
        "model": FakeModel().fingerprint,
        "recipe": Recipe(virtual_tokens=rows, max_new_tokens=7),
        "origin": "local",
        "state": MemoryState.ACTIVE,
        "final_vote_share": 0.75,
        "majority_answer": ANSWERS.get(question, "9"),
    }
    [(memory_id, _)] = bank.adopt("ns", [Adopted(question=question, **given | more)], actor="test")
    if pinned:
        bank.pin("ns", memory_id, True, actor="test")
    return memory_id


def four(bank: Bank, *, apart: float = 1.0, **more: Any) -> list[str]:
    """The questions of ``ANSWERS``, so many degrees from one to the next."""
    return [learnt(bank, question, n * apart, **more) for n, question in enumerate(ANSWERS)]


def used(bank: Bank, memory_id: str, outcome: UseOutcome, times: int = 1) -> None:
    for _ in range(times):
        bank.record_use(
            UseRecord(
                id=new_id("use"),
                namespace="ns",
                memory_id=memory_id,
                question="another",
                similarity=0.5,
                key_kind=KeyKind.INPUT,
                route=Route.MEMORY,
                reason=None,
                answer="1",
                memory_answer="1",
                zero_shot_answer="2",
                outcome=outcome,
                created_at=utcnow(),
            )
        )


class Model(FakeModel):
    """Answers right with any memory but for the questions that are told."""

    def __init__(self, *, wrong_with: Callable[[str, str], bool] = lambda _question, _memory: False) -> None:
        super().__init__(reply=self._say)
        self._wrong_with = wrong_with

    def _say(self, prompt: str, memory_id: str | None) -> str:
        question = next(one for one in ANSWERS if one in prompt)
        return "1000" if self._wrong_with(question, memory_id or "") else ANSWERS[question]


class Student:
    """Stands for the distiller: one new prompt, and what it was given."""

    def __init__(self, *, error: Exception | None = None) -> None:
        self.given: list[tuple[list[str], list[str | None]]] = []
        self._error = error

    def __call__(
        self,
        lessons: Sequence[Any],
        *,
        initial: SoftPrompt,
        recipe: Recipe,
        observe: Callable[..., None],
        cancelled: Callable[[], bool],
    ) -> Trained:
        self.given.append(([one.question for one in lessons], [one.memory.memory_id for one in lessons]))
        if self._error is not None:
            raise self._error
        steps = []
        for step in range(recipe.steps):
            if cancelled():
                raise JobCancelled("as asked")
            steps.append(replace(STEP, step=step))
            observe("distil.step", {"step": step, "loss": 1.0})
        prompt_VE = initial.prompt_VE + float(next(_numbers))
        return Trained(
            prompt=SoftPrompt(prompt_VE),
            keys=MemoryKeys(input=key(1.0), kv=None),
            curve=tuple(steps),
            rollouts=(),
            seed=0,
            seconds=0.3,
        )


def tools(model: FakeModel | None = None, student: Student | None = None) -> Tools:
    return Tools(probe=Probe(model=model or Model(), task_for=get_task), distil=student or Student())


def run(bank: Bank, rules: Rules, given: Tools | None = None, **more: Any) -> CondenseReport:
    return condense(bank, "ns", rules, given or tools(), actor="test", **more)


def states(bank: Bank, ids: Sequence[str]) -> list[str]:
    return [bank.memory("ns", memory_id).state.value for memory_id in ids]


def everything(bank: Bank) -> list[tuple[Any, ...]]:
    """All that a trial in vain must leave alone."""
    return [
        (one.id, one.state, one.revision, one.reason, one.tensor_digest, one.pinned) for one in bank.memories("ns")
    ]


def whole(bank: Bank) -> None:
    assert verify(bank.database, "ns").broken is None
    assert examine(bank).findings == ()


# --- who is put to whom -----------------------------------------------------------------------------------------


def groups(bank: Bank, similarity: float = 0.99, **more: Any) -> list[list[str]]:
    return [[one.id for one in group.members] for group in groups_of(bank, "ns", similarity=similarity, **more)]


def test_the_most_useful_is_the_first_of_its_group_and_a_pin_comes_before(bank: Bank) -> None:
    bank.bind("ns", FakeModel().fingerprint)
    one, two, three, far = (learnt(bank, f"q{n}", degrees) for n, degrees in enumerate([0.0, 1.0, 2.0, 80.0]))
    used(bank, two, UseOutcome.FIXED, 2)
    used(bank, three, UseOutcome.BROKEN)
    assert groups(bank) == [[two, one, three]]
    [group] = groups_of(bank, "ns", similarity=0.99)
    assert group.similarities == pytest.approx([math.cos(math.radians(1))] * 2, abs=1e-6)
    bank.pin("ns", three, True, actor="test")
    assert groups(bank) == [[three, two, one]]
    bank.pin("ns", two, True, actor="test")
    assert groups(bank) == [[two, one]], "of two pinned ones neither goes, and each other goes to the nearest"
    assert groups(bank, retiring=True) == [], "a pinned memory gives its place to no new one"
    assert groups(bank, most=2) == [[two, one]]
    assert groups(bank, without=[two, one]) == []
    assert far not in str(groups(bank, 0.5))


def test_only_like_is_put_to_like(bank: Bank) -> None:
    bank.bind("ns", FakeModel().fingerprint)
    learnt(bank, "q", 0.0)
    learnt(bank, "another task", 0.0, task="text")
    learnt(bank, "somebody's", 0.0, subject="ann")
    learnt(bank, "from a pack", 0.0, origin="pack sha256:0")
    learnt(bank, "of another size", 0.0, rows=3)
    learnt(bank, "a candidate", 0.0, state=MemoryState.CANDIDATE)
    passing = learnt(bank, "for a time", 0.0)
    bank.set_validity("ns", passing, utcnow().replace(year=2200), actor="test")
    assert groups(bank) == []
    twin = learnt(bank, "p", 0.0, subject="ann")
    assert [sorted(one) for one in groups(bank)] == [sorted([twin, *_ids(bank, "somebody's")])]


def _ids(bank: Bank, *questions: str) -> list[str]:
    return [one.id for one in bank.memories("ns") if one.question in questions]


# --- merging ----------------------------------------------------------------------------------------------------


def test_one_serves_for_all_where_the_probe_does_not_lose(either_bank: Bank) -> None:
    bank = either_bank
    ids = four(bank)
    used(bank, ids[1], UseOutcome.FIXED)
    model = Model()
    report = run(bank, NEAR, tools(model))
    [tried] = report.tried
    assert (tried.how, tried.successor, tried.reason, report.retired, report.made) == ("merge", ids[1], None, 3, 0)
    assert tried.probe is not None
    assert (tried.probe.past, tried.probe.kept, tried.probe.before, tried.probe.after) == (3, 3, 3, 3)
    rows = [row for batch in model.batches for row in batch]
    assert [row.prefix.memory_id for row in rows if row.prefix] == [  # its own, then the successor's
        memory_id for one in (ids[3], ids[2], ids[0]) for memory_id in (one, ids[1])
    ]
    assert {row.max_new_tokens for row in rows} == {7}
    assert states(bank, ids) == ["retired", "active", "retired", "retired"]
    assert [hit.memory_id for hit in bank.nearest("ns", KeyKind.INPUT, key(0), 9)] == [ids[1]]
    [merged] = bank.events("ns", ids[1], kind=EventKind.MERGED)
    going = sorted(set(ids) - {ids[1]})
    assert (merged.actor, merged.detail["supersedes"], merged.detail["how"]) == ("test", going, "merge")
    assert merged.detail["probe"]["kept"] == 3
    [evicted] = bank.events("ns", ids[0], kind=EventKind.EVICTED)
    assert evicted.detail == {"from": "active", "to": "retired", "superseded_by": ids[1]}
    assert bank.memory("ns", ids[0]).reason == f"superseded by {ids[1]}"
    assert lineage(bank, "ns", ids[0]).superseded_by == ids[1]
    assert lineage(bank, "ns", ids[1]).supersedes == tuple(going)
    whole(bank)
    again = run(bank, NEAR, tools(model))
    assert (again.tried, again.retired, again.known) == ((), 0, 0)


def test_a_probe_that_loses_leaves_everything_as_it_was(either_bank: Bank) -> None:
    bank = either_bank
    ids = four(bank)
    before = everything(bank)
    model = Model(wrong_with=lambda question, memory: question == "What is 1 + 1?" and memory != ids[0])
    report = run(bank, NEAR, tools(model))
    [tried] = report.tried
    assert tried.successor is None
    assert tried.reason == "with one for all 1 of 3 answers went wrong and 0 came right, may_lose is 0"
    assert (report.retired, everything(bank)) == (0, before)
    [note] = bank.events("ns", kind=EventKind.NOT_MERGED)
    assert (note.memory_id, note.detail["members"], note.detail["probe"]["broken"]) == (None, sorted(ids), 1)
    whole(bank)
    asked = len(model.batches)
    again = run(bank, NEAR, tools(model))
    assert (again.tried, again.known, len(model.batches)) == ((), 1, asked), "the same is not paid for twice"
    lenient = Rules(merge=0.99, may_lose=1)
    assert run(bank, lenient, tools(model)).retired == 3, "other settings are another trial"


def test_what_comes_right_makes_up_for_what_goes_wrong(bank: Bank) -> None:
    bank.bind("ns", FakeModel().fingerprint)
    ids = four(bank)

    def wrong(question: str, memory: str) -> bool:
        if question == "What is 1 + 1?":
            return memory != ids[0]
        return question == "What is 1 + 2?" and memory == ids[1]

    report = run(bank, NEAR, tools(Model(wrong_with=wrong)))
    assert report.tried[0].probe is not None
    assert (report.tried[0].probe.fixed, report.tried[0].probe.broken, report.retired) == (1, 1, 3)


def test_a_memory_that_cannot_be_tried_stays(bank: Bank) -> None:
    bank.bind("ns", FakeModel().fingerprint)
    first, split, silent, clear = (
        learnt(bank, question, n / 10, **more)
        for n, (question, more) in enumerate(
            zip(ANSWERS, [{}, {"final_vote_share": 0.2}, {"majority_answer": None}, {}], strict=True)
        )
    )
    used(bank, first, UseOutcome.FIXED)
    report = run(bank, NEAR)
    assert states(bank, [first, split, silent, clear]) == ["active", "active", "active", "retired"]
    assert report.tried[0].questions == ("What is 1 + 4?",)
    [left] = run(bank, NEAR).tried
    assert left.reason == "too few of its questions have a clear majority answer to be tried on"


def test_what_somebody_brings_back_is_left_alone(bank: Bank) -> None:
    bank.bind("ns", FakeModel().fingerprint)
    ids = four(bank)
    used(bank, ids[0], UseOutcome.FIXED)
    run(bank, NEAR)
    bank.transition("ns", ids[2], MemoryState.ACTIVE, actor="ada", reason="I want it")  # the undo
    assert len(bank.nearest("ns", KeyKind.INPUT, key(0), 9)) == 2
    assert run(bank, NEAR).tried == ()
    found = lineage(bank, "ns", ids[2])
    assert (found.superseded_by, found.restored) == (None, True)
    whole(bank)


# --- distilling -------------------------------------------------------------------------------------------------


def test_a_region_becomes_one_new_memory(either_bank: Bank) -> None:
    bank, student = either_bank, Student()
    ids = four(bank, apart=3.0, subject="ann")
    used(bank, ids[2], UseOutcome.FIXED)
    report = run(bank, REGION, tools(student=student))
    [tried] = report.tried
    assert (tried.how, report.retired, report.made, tried.first) == ("distil", 4, 1, ids[2])
    assert tried.successor is not None
    assert set(student.given[0][0]) == set(ANSWERS)
    assert set(student.given[0][1]) == set(ids), "each question's teacher has its own memory"
    assert states(bank, ids) == ["retired"] * 4
    made = bank.memory("ns", tried.successor)
    first = bank.memory("ns", ids[2])
    assert (made.state, made.question, made.task, made.subject) == ("active", first.question, "number", "ann")
    assert (made.origin, made.job_id, made.virtual_tokens, made.final_vote_share) == ("local", None, 2, 0.75)
    assert (made.recipe.objective, made.recipe.steps, made.recipe.max_new_tokens) == ("distilled", 3, 7)
    episode = bank.episode("ns", made.id)
    assert (episode.majority_answer, len(episode.curve), episode.seconds) == ("4", 3, 0.3)
    kinds = [event.kind for event in bank.events("ns", made.id)]
    assert kinds == [EventKind.CREATED, EventKind.MERGED]
    assert lineage(bank, "ns", made.id).supersedes == tuple(sorted(ids))
    assert [hit.memory_id for hit in bank.nearest("ns", KeyKind.INPUT, key(0), 9)] == [made.id]
    whole(bank)
    assert run(bank, REGION, tools(student=student)).tried == ()
    assert len(student.given) == 1
    assert [one.memory_ids for one in bank.forget_subject("ann", namespace="ns", actor="test")] == [
        tuple(sorted([*ids, made.id]))
    ], "whoever is forgotten is forgotten in what was made of theirs"


def test_a_student_that_loses_is_thrown_away(either_bank: Bank) -> None:
    bank, student = either_bank, Student()
    ids = four(bank, apart=3.0)
    before, tensors = everything(bank), sorted(bank.tensors.digests("ns"))
    given = tools(Model(wrong_with=lambda question, memory: memory == NEW and "1 + 4" in question), student)
    [tried] = run(bank, REGION, given).tried
    assert (tried.successor, everything(bank), sorted(bank.tensors.digests("ns"))) == (None, before, tensors)
    assert states(bank, ids) == ["active"] * 4
    assert run(bank, REGION, given).known == 1
    assert len(student.given) == 1
    assert run(bank, Rules(distil=0.9, steps=4), given).known == 0, "more steps are another trial"
    whole(bank)


def test_who_took_a_place_answers_for_its_questions_too(bank: Bank) -> None:
    bank.bind("ns", FakeModel().fingerprint)
    student = Student()
    first, near, other, gone = (
        learnt(bank, question, degrees) for question, degrees in zip(ANSWERS, (0.0, 0.5, 12.0, 0.7), strict=True)
    )
    used(bank, first, UseOutcome.FIXED, 3)
    assert run(bank, NEAR).retired == 2
    bank.purge("ns", [gone], actor="test", reason=None)
    [tried] = run(bank, REGION, tools(student=student)).tried
    assert dict(zip(*student.given[0], strict=True)) == {
        "What is 1 + 1?": first,
        "What is 1 + 2?": first,
        "What is 1 + 3?": other,
    }
    assert tried.successor is not None
    assert near not in lineage(bank, "ns", tried.successor).supersedes
    bank.transition("ns", tried.successor, MemoryState.RETIRED, actor="ada", reason=None)
    for memory_id in (first, other):
        bank.transition("ns", memory_id, MemoryState.ACTIVE, actor="ada", reason="undone")
    assert run(bank, REGION, tools(student=student)).tried == ()
    whole(bank)


# --- passes -----------------------------------------------------------------------------------------------------


def test_a_dry_run_needs_no_model_and_changes_nothing(either_bank: Bank) -> None:
    bank = either_bank
    ids = [learnt(bank, question, degrees) for question, degrees in zip(ANSWERS, (0, 0.5, 12, 80), strict=True)]
    used(bank, ids[0], UseOutcome.FIXED)
    before, revision = everything(bank), bank.namespace("ns").revision
    both = Rules(merge=0.99, distil=0.9)
    report = condense(bank, "ns", both, dry_run=True)
    assert [(one.how, set(one.members)) for one in report.tried] == [
        ("merge", {ids[0], ids[1]}),
        ("distil", {ids[0], ids[2]}),
    ], "what one would retire the other does not see"
    assert (report.dry_run, report.retired, report.made) == (True, 3, 1)
    assert (everything(bank), bank.namespace("ns").revision) == (before, revision)
    done = run(bank, both)
    assert [(one.how, one.members) for one in done.tried] == [(one.how, one.members) for one in report.tried]
    assert (done.retired, done.made) == (3, 1)


def test_the_time_ends_it_between_groups_and_within_one(bank: Bank) -> None:
    bank.bind("ns", FakeModel().fingerprint)
    ids = [learnt(bank, question, n * 40 + m) for n in range(3) for m, question in enumerate(list(ANSWERS)[:2])]
    before = everything(bank)
    report = run(bank, NEAR, seconds=1e-9)
    assert (report.tried, report.left, everything(bank)) == ((), 3, before)
    asked = iter(range(99))
    report = run(bank, REGION, cancelled=lambda: next(asked) > 2)
    assert (len(report.tried), report.left, everything(bank)) == (1, 3, before)
    assert report.tried[0].given_up
    assert "the next pass begins it anew" in str(report.tried[0].reason)
    assert bank.events("ns", kind=EventKind.NOT_MERGED) == [], "it was not tried to its end"
    report = run(bank, REGION)
    assert (len(report.tried), report.left, report.made) == (3, 0, 3)
    assert states(bank, ids) == ["retired"] * 6


def test_what_changes_meanwhile_or_fails_costs_one_group(bank: Bank) -> None:
    bank.bind("ns", FakeModel().fingerprint)
    ids = [learnt(bank, question, n * 40 + m) for n in range(2) for m, question in enumerate(list(ANSWERS)[:2])]
    probed: list[str] = []

    def meddle(name: str, _detail: dict[str, Any]) -> None:
        if name == "condense.probed" and not probed:
            probed.append(name)
            for memory_id in ids:
                bank.pin("ns", memory_id, True, actor="ada")
                bank.pin("ns", memory_id, False, actor="ada")

    report = run(bank, REGION, observe=meddle)
    reasons = [one.reason for one in report.tried]
    assert all("was changed meanwhile: nothing was done" in str(reason) for reason in reasons)
    assert states(bank, ids) == ["active"] * 4
    failing = tools(student=Student(error=TrainingError("loss nan")))
    report = run(bank, REGION, failing)
    assert {one.reason for one in report.tried} == {"TrainingError: loss nan"}
    whole(bank)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", CONDENSE_STEPS)
def test_a_pass_that_is_killed_anywhere_is_ended_by_the_next(bank: Bank, step: str) -> None:
    bank.bind("ns", FakeModel().fingerprint)
    ids = four(bank, apart=3.0)

    def kill(name: str, _detail: dict[str, Any]) -> None:
        if name == step:
            raise Killed

    with pytest.raises(Killed):
        run(bank, REGION, observe=kill)
    whole(bank)
    committed = step in ("supersede.committed", "condense.done")
    assert states(bank, ids) == ["retired" if committed else "active"] * 4
    run(bank, REGION)
    assert states(bank, ids) == ["retired"] * 4
    assert len(bank.memories("ns", state=MemoryState.ACTIVE)) == 1
    assert len(bank.events("ns", kind=EventKind.MERGED)) == 1
    whole(bank)


def test_what_cannot_be_done_is_said_first(bank: Bank) -> None:
    bank.bind("ns", FakeModel().fingerprint)
    with pytest.raises(InputError, match="nothing to condense"):
        run(bank, Rules())
    with pytest.raises(InputError, match="it needs a model"):
        condense(bank, "ns", NEAR)
    with pytest.raises(InputError, match="one that can be trained"):
        condense(bank, "ns", REGION, Tools(probe=Probe(model=Model(), task_for=get_task)))
    with pytest.raises(NotFound):
        condense(bank, "elsewhere", NEAR, tools())
    with pytest.raises(SettingsError, match="a person approves what is to serve"):
        condense_bank(bank, Settings(review={"memories": True}), namespace="ns", distil=True, dry_run=True)


# --- with a model of its own ------------------------------------------------------------------------------------


def test_a_real_model_distils_its_own_memories(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = Settings(
        model=str(write_tiny_model(tmp_path_factory.mktemp("tiny"))),
        home=tmp_path / "real",
        index="exact",
        offline=True,
        task="text",
        max_new_tokens=4,
        worker={"mode": "inline"},
        learning={"steps": 1, "rollouts": 2, "max_new_tokens": 4, "virtual_tokens": 5},
        admission={"probe_reference_share": 0.0},
        maintenance={"distil_similarity": 0.01, "distil_steps": 3, "may_lose": 9},
    )
    with open_runtime(settings) as runtime:
        for question in ("What is one?", "What is two?"):
            runtime.bank.jobs.enqueue(
                "default",
                question,
                task="text",
                model_id=runtime.model.fingerprint.id,
                recipe=runtime.recipe,
            )
        runtime.runner.notify()
        assert len(runtime.bank.memories("default", state=MemoryState.ACTIVE)) == 2
        report = condense_bank(
            runtime.bank, settings, distil=True, model=runtime.model, task=runtime.task, actor="test"
        )
        [tried] = report.tried
        assert (tried.reason, report.made, len(runtime.bank.memories("default", state=MemoryState.ACTIVE))) == (
            None,
            1,
            1,
        )
        assert tried.successor is not None
        made = runtime.bank.memory("default", tried.successor)
        assert (made.recipe.objective, made.virtual_tokens, made.origin) == ("distilled", 5, "local")
        assert len(runtime.bank.episode("default", made.id).curve) == 3
        assert runtime.bank.prompt("default", made.id).virtual_tokens == 5
