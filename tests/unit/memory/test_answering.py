"""The decision between two candidates, every branch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from elm_agent.errors import InputError, TaskError
from elm_agent.memory.answering import Decision, ask, candidate, check_question, decide, describe
from elm_agent.records import Candidate, Route, Verdict
from elm_agent.tasks import get_task
from elm_agent.testing.doubles import FakeModel, FixedVerifier

TASK = get_task("number")


def made(answer: str | None, text: str | None = None, *, memory: bool = False) -> Candidate:
    return Candidate(
        text=text if text is not None else f"It is {answer}",
        answer=answer,
        tokens=3,
        mean_logprob=-0.5,
        self_certainty=0.5,
        finished=True,
        seconds=0.0,
        memory_id="mem_1" if memory else None,
    )


def choose(memory: Candidate, plain: Candidate, verifier: FixedVerifier | None = None) -> Decision:
    return decide("?", memory, plain, TASK, verifier or FixedVerifier())


def test_equivalent_answers_agree_without_a_verifier() -> None:
    verifier = FixedVerifier(fail=True)
    decision = choose(made("7.0", memory=True), made("7", "plain"), verifier)
    assert (decision.route, decision.answer, decision.text, decision.reason) == (Route.AGREED, "7", "plain", None)
    assert verifier.calls == 0


@pytest.mark.parametrize(
    ("memory", "zero_shot", "route", "answer"),
    [(0.2, 0.1, Route.MEMORY, "1"), (0.1, 0.2, Route.ZERO_SHOT, "2"), (0.1, 0.1, Route.ZERO_SHOT, "2")],
)
def test_the_higher_score_wins_and_a_tie_is_zero_shot(
    memory: float, zero_shot: float, route: Route, answer: str
) -> None:
    verifier = FixedVerifier(memory=memory, zero_shot=zero_shot)
    decision = choose(made("1", memory=True), made("2"), verifier)
    assert (decision.route, decision.answer) == (route, answer)
    assert decision.memory is not None
    assert (decision.memory.score, decision.zero_shot.score) == (memory, zero_shot)
    assert (decision.reason is not None) == (memory == zero_shot)


@pytest.mark.parametrize(
    ("memory", "zero_shot", "route"),
    [
        (made("1", memory=True), made(None, "no idea"), Route.MEMORY),
        (made(None, "no idea", memory=True), made("1"), Route.ZERO_SHOT),
        (made(None, "no idea", memory=True), made(None, "hm"), Route.ZERO_SHOT),
        (made(None, "no  idea", memory=True), made(None, "no idea\n"), Route.AGREED),
    ],
)
def test_an_answer_beats_no_answer(memory: Candidate, zero_shot: Candidate, route: Route) -> None:
    verifier = FixedVerifier(memory=9.0)
    decision = choose(memory, zero_shot, verifier)
    assert decision.route is route
    assert decision.reason
    assert verifier.calls == 0
    assert decision.text == (memory if route is Route.MEMORY else zero_shot).text


class Odd:
    """A verifier that breaks the contract in one way."""

    name = "odd"

    def __init__(self, verdicts: Sequence[Verdict]) -> None:
        self.verdicts = list(verdicts)

    def score(self, question: str, candidates: Sequence[Candidate]) -> list[Verdict]:
        del question, candidates
        return self.verdicts


@pytest.mark.parametrize(
    "verifier",
    [FixedVerifier(fail=True), Odd([]), Odd([Verdict(1.0)] * 3), Odd([Verdict(float("nan")), Verdict(0.0)])],
    ids=["raises", "none", "three", "nan"],
)
def test_a_failing_verifier_is_a_reason_never_a_score(verifier: FixedVerifier) -> None:
    decision = choose(made("1", memory=True), made("2"), verifier)
    assert (decision.route, decision.answer) == (Route.FAILED_MEMORY, "2")
    assert decision.reason is not None
    assert "VerificationError" in decision.reason
    assert decision.memory is not None
    assert decision.memory.score is decision.zero_shot.score is None


@pytest.mark.parametrize("error", [TaskError, KeyError])
def test_a_failing_comparison_is_a_reason(error: type[Exception]) -> None:
    class Broken(type(TASK)):  # type: ignore[misc]
        def equivalent(self, *_answers: str) -> bool:
            raise error("cannot compare")

    decision = decide("?", made("1", memory=True), made("2"), Broken(), FixedVerifier())
    assert (decision.route, decision.answer) == (Route.FAILED_MEMORY, "2")
    assert "cannot compare" in str(decision.reason)


def test_ask_and_candidate() -> None:
    model = FakeModel(reply=lambda _prompt, _memory: "so it is 12")
    generation = ask("What?", model=model, task=TASK, max_new_tokens=50).result()
    result = candidate(generation, task=TASK, memory_id="mem_1")
    assert (result.answer, result.memory_id, result.tokens) == ("12", "mem_1", 11)
    assert model.batches[0][0].temperature == 0.0


@pytest.mark.parametrize("question", ["", " \n\t", None, b"bytes", 3, "half \ud800", "nul \x00"])
def test_unusable_questions(question: object) -> None:
    with pytest.raises(InputError):
        check_question(question)


def test_describe_is_one_line() -> None:
    assert describe(ValueError("a\n  b")) == "ValueError: a b"
    assert describe(KeyError()) == "KeyError"
