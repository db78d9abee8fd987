"""What of a memory's training stands for it in words, and the chat it stands in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from elm_agent.memory.example import example_of, with_turns
from elm_agent.records import DISTILLED, Episode, MemoryRecord, Recipe, Rollout
from elm_agent.runtime import open_runtime
from elm_agent.tasks import get_task
from elm_agent.testing.doubles import FakeModel, FakeTrainer


@pytest.fixture
def learned(tmp_path: Path) -> tuple[MemoryRecord, Episode]:
    options: dict[str, Any] = {"home": tmp_path, "task": "number", "worker": {"mode": "inline"}, "index": "exact"}
    with open_runtime(model=FakeModel(), trainer=FakeTrainer(), **options) as runtime:
        job, _ = runtime.bank.jobs.enqueue(
            "default", "What is 2 plus 3?", task="number", model_id=runtime.model.fingerprint.id, recipe=Recipe()
        )
        runtime.worker().run(once=True)
        memory_id = runtime.bank.jobs.get("default", job.id).memory_id
        assert memory_id is not None
        return runtime.bank.memory("default", memory_id), runtime.bank.episode("default", memory_id)


def rollouts(*said: tuple[str, str | None] | tuple[str, str | None, bool]) -> tuple[Rollout, ...]:
    return tuple(
        Rollout(
            step=0,
            index=index,
            seed=index,
            text=text,
            answer=answer,
            reward=0.0,
            tokens=1,
            finished=whole[0] if whole else True,
        )
        for index, (text, answer, *whole) in enumerate(said)
    )


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ((("so it is 5", "5"), ("5", "5"), (" 5 ", "5"), ("6", "6")), "5"),
        ((("it is 5.0", "5.0"), ("6", "6"), ("5!", "5")), "5!"),  # equal answers are one, the shorter text is taken
        ((("4", "4"), ("5", "5")), "5"),  # of equals the later one
        ((("5 and on and on", "5", False), ("it is surely 5", "5")), "it is surely 5"),
        ((("5 and", "5", False), ("who knows", None), ("who knows", None)), "5 and"),
    ],
)
def test_an_example_is_the_text_of_the_answer_that_won(
    learned: tuple[MemoryRecord, Episode], said: Any, text: str
) -> None:
    memory, episode = learned
    found = example_of(memory, replace(episode, rollouts=rollouts(*said)), get_task("number"))
    assert found == ("What is 2 plus 3?", text)


def test_without_an_answer_there_is_no_example(learned: tuple[MemoryRecord, Episode]) -> None:
    memory, episode = learned
    task = get_task("number")
    assert example_of(memory, replace(episode, rollouts=rollouts(("who knows", None))), task) is None
    assert example_of(memory, replace(episode, rollouts=()), task) is None


def test_what_was_distilled_answers_other_questions(learned: tuple[MemoryRecord, Episode]) -> None:
    memory, episode = learned
    given = replace(episode, rollouts=rollouts(("5", "5")))
    distilled = replace(memory, recipe=replace(memory.recipe, objective=DISTILLED))
    assert example_of(memory, given, get_task("number")) is not None
    assert example_of(distilled, given, get_task("number")) is None


def test_an_example_is_a_turn_before_the_question() -> None:
    task = get_task("math")
    *opening, asked = task.messages("What is 3 times 4?")
    (*_, before) = task.messages("What is 2 times 2?")
    assert with_turns(task, "What is 3 times 4?", [("What is 2 times 2?", "4")]) == [
        *opening,
        before,
        {"role": "assistant", "content": "4"},
        asked,
    ]
