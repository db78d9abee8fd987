"""``feedback``, ``ask --explain`` and what ``memories`` shows of a memory's worth."""

from __future__ import annotations

import json

import pytest
from cli_calls import Elm, ask, assert_one_sentence, error_of

from elm_agent.cli.explain import show_explanation
from elm_agent.cli.output import Output
from elm_agent.records import MemoryState
from elm_agent.storage.bank import Bank

pytestmark = pytest.mark.usefixtures("fake")


def test_feedback_is_told_and_the_last_word_counts(elm: Elm, bank: Bank) -> None:
    use = ask(elm)["use_id"]
    first = elm("feedback", use, "right")
    assert (first.exit_code, first.stdout) == (0, f"{use} is noted as right, so its memory helped\n")
    again = elm("feedback", use, "right")
    assert again.stdout == f"{use} was noted as right before; nothing changed\n"
    other = elm("feedback", use, "wrong", "--answer", "43")
    assert other.stdout == (
        f"{use} is noted as wrong (right is 43), so its memory was the worse of the two; this replaces right\n"
    )
    report = json.loads(elm("feedback", use, "wrong", "--json").stdout)
    assert (report["feedback"], report["effect"], report["replaced"]) == ("wrong", "perhaps_hurt", "wrong")
    assert (report["replaced_answer"], report["memory_state"], report["job_id"]) == ("43", "active", None)
    assert bank.use("default", use).feedback == "wrong"


def test_what_cannot_be_is_refused_in_one_sentence(elm: Elm, bank: Bank) -> None:
    use = ask(elm)["use_id"]
    assert_one_sentence(
        elm("feedback", "use_x", "right"), 3, "no use 'use_x' in namespace 'default': `elm-agent ask`"
    )
    assert_one_sentence(elm("feedback", use, "perhaps"), 2, "'perhaps' is not one of")
    assert_one_sentence(elm("feedback", use, "wrong", "--answer", "42"), 2, "'42' means the same: say right")
    assert error_of(elm("feedback", use, "right", "--answer", "", "--json"))["message"].startswith(
        "an answer has 1 to"
    )
    assert_one_sentence(elm("--namespace", "other", "feedback", use, "right"), 3, "'other' is not in this bank")
    assert bank.use("default", use).feedback is None


def test_harm_is_quarantined_and_brought_back_by_a_review(
    elm: Elm, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELM_UTILITY__QUARANTINE_HARM", "0.7")
    monkeypatch.setenv("ELM_UTILITY__QUARANTINE_USES", "1")
    answer = ask(elm)
    told = elm("feedback", answer["use_id"], "wrong", "--answer", "43")
    memory = answer["memory_id"]
    assert f"memory {memory} is quarantined, `elm-agent memories restore` brings it back" in told.stdout
    assert ask(elm)["route"] == "no_memory"
    assert elm("memories", "review", memory, "--verdict", "restore", "--note", "no").exit_code == 0
    assert bank.memory("default", memory).state is MemoryState.ACTIVE
    assert ask(elm)["memory_id"] == memory
    assert bank.memory("default", memory).state is MemoryState.ACTIVE


def test_a_wrong_answer_waits_to_be_learnt_again(elm: Elm, bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELM_LEARNING__REPLAY_ROLLOUTS", "16")
    use = ask(elm)["use_id"]
    told = elm("feedback", use, "wrong").stdout
    job = bank.jobs.list("default")[0]
    assert f"its question is learnt again as {job.id} (queued)" in told
    assert (job.question, job.recipe.rollouts) == ("What is 6 times 7?", 16)


def test_what_was_heard_is_shown_beside_both_answers(capsys: pytest.CaptureFixture[str]) -> None:
    heard = [
        {"memory_id": "mem_far", "answer": "7", "score": -0.5, "route": "outvoted"},
        {"memory_id": "mem_mute", "answer": None, "score": None, "route": "zero_shot"},
        {"memory_id": "mem_told", "answer": "8", "score": None, "route": "outvoted", "in_words": True},
    ]
    told = {
        "retrieval": {"ranking": "nearest", "threshold": -1.0, "looked_at": 1, "candidates": [], "abstention": None},
        "budget": {},
        "verifier": {"name": "fixed", "asked": False, "memory": None, "zero_shot": None},
        "answers": {"memory": "42", "zero_shot": "41"},
        "heard": heard,
        "route": "memory",
        "why": "so",
    }
    show_explanation(Output(json=False), told)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["mem_far", "7", "-0.500"] in rows
    assert [row[0] for row in rows if row and row[0].startswith("mem_")] == ["mem_far", "mem_mute", "mem_told,"]


def test_an_explained_answer(elm: Elm, bank: Bank) -> None:
    (memory,) = bank.memories("default")
    told = elm("ask", "What is 6 times 7?", "--no-learn", "--explain")
    assert told.exit_code == 0
    lines = told.stdout.splitlines()
    assert lines[0] == "\\boxed{42}"
    assert "retrieval by nearest, threshold -1.000, the first 1 looked at" in lines
    (row,) = [line.split() for line in lines if line.startswith(memory.id)]
    assert row[1] == "yes"
    assert row[-2:] == ["1/1/1", "0"]
    assert "answers, verifier fixed (higher is better)" in lines
    assert lines[-1].startswith("route memory: the memory's answer was taken, for verifier 'fixed' gave")
    assert "; use use_" in told.stderr
    answer = ask(elm, "--explain")
    assert answer["explanation"]["retrieval"]["candidates"][0]["memory_id"] == memory.id
    assert "explanation" not in ask(elm)
    event = elm("ask", "What is 6 times 7?", "--no-learn", "--explain", "--events").stdout.splitlines()[-1]
    assert json.loads(event)["explanation"]["route"] == "memory"


def test_a_question_without_memories_is_explained_too(elm: Elm) -> None:
    told = elm("ask", "What is 6 times 7?", "--no-learn", "--explain").stdout
    assert "route no_memory: no memory was used: the bank has no memory" in told
    assert "(not asked)" in told


def test_what_a_memory_is_worth_is_shown(elm: Elm, bank: Bank) -> None:
    (memory,) = bank.memories("default")
    use = ask(elm)["use_id"]
    elm("feedback", use, "right")
    line = "+0.250 ± 0.371 (helped 2, no difference 1, hurt 1, prior included); harmful with probability 0.250"
    assert line in elm("memories", "show", memory.id).stdout
    why = elm("memories", "why", memory.id).stdout
    assert f"utility {line}" in why
    (row,) = [item.split() for item in why.splitlines() if item.startswith(use)]
    assert "right" in row
    told = json.loads(elm("memories", "why", memory.id, "--json").stdout)
    assert told["worth"]["utility"] == pytest.approx(0.25)
    assert told["uses"][0]["feedback"] == "right"
