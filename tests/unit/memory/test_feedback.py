"""What right and wrong say of a memory, and what is learnt again because of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from elm_agent.bench.filling import use_of
from elm_agent.errors import InputError, NotFound, TaskError
from elm_agent.memory.feedback import effect_of, give_feedback
from elm_agent.memory.replay import PRIORITY, Replay
from elm_agent.memory.worker import Worker
from elm_agent.records import Effect, Feedback, JobRecord, JobState, Recipe, Route, UseRecord
from elm_agent.storage.bank import Bank
from elm_agent.tasks import NumberTask
from elm_agent.testing.doubles import FakeTrainer

RIGHT, WRONG = Feedback.RIGHT, Feedback.WRONG
TASK = NumberTask()
QUESTION = "What is 7 times 8?"
REPLAY = Replay(rollouts=32, split_below=0.5, max_attempts=3)


def use(route: Route = Route.MEMORY, memory: str | None = "42", plain: str | None = "41") -> UseRecord:
    returned = memory if route is Route.MEMORY else plain
    return use_of("ns", "mem_x", route=route, answer=returned, memory_answer=memory, zero_shot_answer=plain)


@pytest.mark.parametrize(
    ("given", "word", "answer", "effect"),
    [
        (use(), RIGHT, None, Effect.HELPED),
        (use(), WRONG, None, Effect.PERHAPS_HURT),
        (use(), WRONG, "41", Effect.HURT),
        (use(), WRONG, "7", Effect.SAME),
        (use(), RIGHT, "42.0", Effect.HELPED),
        (use(plain=None), RIGHT, None, Effect.HELPED),
        (use(Route.ZERO_SHOT), RIGHT, None, Effect.HURT),
        (use(Route.ZERO_SHOT), WRONG, None, Effect.PERHAPS_HELPED),
        (use(Route.ZERO_SHOT), WRONG, "42", Effect.HELPED),
        (use(Route.ZERO_SHOT), WRONG, "7", Effect.SAME),
        (use(Route.ZERO_SHOT, memory=None), WRONG, "7", Effect.SAME),
        (use(Route.ZERO_SHOT, memory=None, plain=None), WRONG, None, None),
        (use(Route.AGREED, "42", "42"), RIGHT, None, Effect.SAME),
        (use(Route.AGREED, "42", "42"), WRONG, None, Effect.SAME),
        (use(Route.AGREED, "42", "42"), WRONG, "7", Effect.SAME),
        (use(Route.OUTVOTED, "42", "41"), RIGHT, None, Effect.SAME),
        (use(Route.OUTVOTED, "42", "41"), WRONG, None, None),
        (use(Route.OUTVOTED, "42", "41"), WRONG, "42", Effect.HELPED),
        (use(Route.FAILED_MEMORY, memory=None), WRONG, None, None),
        (use(Route.FAILED_MEMORY, memory=None), WRONG, "7", None),
        (use(Route.FAILED_MEMORY), WRONG, None, None),
        (use(Route.FAILED_MEMORY), WRONG, "42", Effect.HELPED),
    ],
)
def test_what_a_word_says(given: UseRecord, word: Feedback, answer: str | None, effect: Effect | None) -> None:
    assert effect_of(given, word, answer, TASK) == effect


@pytest.mark.parametrize(
    ("word", "answer", "message"),
    [
        (WRONG, "42.0", "returned is '42', and '42.0' means the same: say right, or give another answer"),
        (RIGHT, "41", "returned is '42', and '41' means something else: say wrong, or leave the answer out"),
        (RIGHT, " ", "an answer has 1 to 2000 characters; got 0"),
        (RIGHT, "4" * 2001, "got 2001"),
        (RIGHT, "4\x002", "not UTF-8 text without NUL"),
        (RIGHT, "\ud800", "not UTF-8 text"),
        (RIGHT, 42, "an answer is a text; got int"),
        ("perhaps", None, "feedback is 'right' or 'wrong'; got 'perhaps'"),
        (None, None, "feedback is 'right' or 'wrong'; got 'None'"),
    ],
)
def test_contradictions_and_nonsense_are_refused(
    noted: UseRecord, bank: Bank, word: Any, answer: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        give_feedback(bank, "ns", noted.id, word, task=TASK, answer=answer)
    assert bank.use("ns", noted.id).feedback is None


@pytest.fixture
def noted(bank: Bank, enqueue: Callable[..., JobRecord], make_worker: Callable[..., Worker]) -> UseRecord:
    """A use whose memory's 42 was returned instead of 41."""
    enqueue(QUESTION)
    make_worker().run(once=True)
    (memory,) = bank.memories("ns")
    made = use_of("ns", memory.id, question=QUESTION, subject="ada")
    bank.record_use(made)
    return made


def test_a_report_says_what_changed(bank: Bank, noted: UseRecord) -> None:
    first = give_feedback(bank, "ns", noted.id, "wrong", task=TASK)
    assert (first.feedback, first.effect, first.recorded, first.replaced) == (WRONG, Effect.PERHAPS_HURT, True, None)
    assert (first.memory_id, first.memory_namespace, first.memory_state) == (noted.memory_id, "ns", "active")
    assert first.job_id is None, "nothing is learnt again unless that is asked for"
    assert not give_feedback(bank, "ns", noted.id, WRONG, task=TASK).recorded
    told = give_feedback(bank, "ns", noted.id, WRONG, task=TASK, answer="41")
    assert (told.replaced, told.replaced_answer, told.answer, told.effect) == (WRONG, None, "41", Effect.HURT)
    back = give_feedback(bank, "ns", noted.id, RIGHT, task=TASK)
    assert (back.replaced, back.replaced_answer, back.answer, back.effect) == (WRONG, "41", None, Effect.HELPED)


def test_another_namespace_has_no_such_use(bank: Bank, noted: UseRecord) -> None:
    bank.bind("other", bank.namespaces()[0].model)
    with pytest.raises(NotFound, match=r"no use .* in namespace 'other'"):
        give_feedback(bank, "other", noted.id, WRONG, task=TASK)


def test_answers_that_cannot_be_compared_note_nothing(bank: Bank, noted: UseRecord) -> None:
    class Broken(NumberTask):
        def equivalent(self, left: str, right: str) -> bool:
            raise TaskError(f"cannot compare {left!r} and {right!r}")

    with pytest.raises(TaskError):
        give_feedback(bank, "ns", noted.id, WRONG, task=Broken(), answer="41")
    assert bank.use("ns", noted.id).feedback is None


# --- learnt again -------------------------------------------------------------------------------------------


def test_a_wrong_answers_question_is_queued_once_with_more_rollouts(bank: Bank, noted: UseRecord) -> None:
    again = {"task": TASK, "replay": REPLAY, "recipe": Recipe(steps=2)}
    assert give_feedback(bank, "ns", noted.id, RIGHT, **again).job_id is None
    report = give_feedback(bank, "ns", noted.id, WRONG, **again)
    job = bank.jobs.get("ns", str(report.job_id))
    assert (report.job_state, job.state, job.question, job.subject) == ("queued", "queued", QUESTION, "ada")
    assert (job.recipe, job.priority) == (Recipe(steps=2, rollouts=32), PRIORITY)
    assert give_feedback(bank, "ns", noted.id, WRONG, **again).job_id == job.id
    assert len(bank.jobs.list("ns")) == 2


@pytest.mark.parametrize(("vote_share", "jobs"), [(0.49, 2), (0.5, 1)])
def test_split_votes_are_learnt_again_once(
    bank: Bank, enqueue: Callable[..., JobRecord], make_worker: Callable[..., Worker], vote_share: float, jobs: int
) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    first = enqueue(QUESTION, subject="ada")
    worker = make_worker(
        FakeTrainer(vote_share=vote_share), replay=REPLAY, observe=lambda name, detail: told.append((name, detail))
    )
    worker.run(once=True)
    done = bank.jobs.list("ns", state=JobState.DONE)
    assert len(done) == len(bank.jobs.list("ns")) == jobs
    replays = [detail for name, detail in told if name == "job.replayed"]
    if jobs == 1:
        assert replays == []
        return
    assert done[0].recipe == replace(first.recipe, rollouts=32)
    assert (done[0].question, done[0].subject, done[0].priority) == (QUESTION, "ada", PRIORITY)
    assert replays == [{"job_id": first.id, "namespace": "ns", "replay_id": done[0].id, "rollouts": 32}]
    # what a user calls wrong afterwards is that same replay
    made = use_of("ns", str(done[0].memory_id), question=QUESTION)
    bank.record_use(made)
    report = give_feedback(bank, "ns", made.id, WRONG, task=TASK, replay=REPLAY, recipe=first.recipe)
    assert (report.job_id, report.job_state) == (done[0].id, "done")


def test_new_questions_are_learnt_before_replays(
    enqueue: Callable[..., JobRecord], make_worker: Callable[..., Worker]
) -> None:
    trainer = FakeTrainer(vote_share=0.2)
    for n in range(3):
        enqueue(f"question {n}")
    make_worker(trainer, replay=REPLAY).run(once=True)
    assert trainer.trained == [f"question {n}" for n in range(3)] * 2


def test_without_a_replay_nothing_is_learnt_twice(
    bank: Bank, enqueue: Callable[..., JobRecord], make_worker: Callable[..., Worker]
) -> None:
    enqueue(QUESTION)
    make_worker(FakeTrainer(vote_share=0.1)).run(once=True)
    assert len(bank.jobs.list("ns")) == 1
