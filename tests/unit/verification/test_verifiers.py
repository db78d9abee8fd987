"""Verifiers that need no second model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import count

import pytest

from elm_agent.errors import InputError, ModelError, TaskError, VerificationError
from elm_agent.protocols import GenerationRequest
from elm_agent.records import Candidate, Generation
from elm_agent.tasks import NumberTask
from elm_agent.testing.doubles import FakeModel
from elm_agent.verification import CallableVerifier, MajorityOfSamples, MeanLogprob, SelfCertainty
from elm_agent.verification.samples import sample_seed


def candidate(answer: str | None, *, logprob: float = -1.0, certainty: float = 2.0) -> Candidate:
    return Candidate(
        text=answer or "",
        answer=answer,
        tokens=3,
        mean_logprob=logprob,
        self_certainty=certainty,
        finished=True,
        seconds=0.0,
    )


class ScriptedModel(FakeModel):
    """A fake model whose replies follow a script, one line per sampled row, and that keeps the requests."""

    def __init__(self, lines: Sequence[str]) -> None:
        turn = count()
        super().__init__(reply=lambda _prompt, _memory: lines[next(turn) % len(lines)])

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        self.requests = list(requests)
        return super().generate(requests)


def test_confidence_scores_are_the_candidates_own_fields() -> None:
    pair = [candidate("1", logprob=-0.25, certainty=7.5), candidate("2", logprob=-3.0, certainty=0.5)]
    assert [verdict.score for verdict in MeanLogprob().score("q", pair)] == [-0.25, -3.0]
    assert [verdict.score for verdict in SelfCertainty().score("q", pair)] == [7.5, 0.5]
    assert (MeanLogprob.name, SelfCertainty.name) == ("mean_logprob", "self_certainty")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_confidence_that_is_not_finite_is_a_failure(value: float) -> None:
    with pytest.raises(VerificationError, match="expected a finite number"):
        MeanLogprob().score("q", [candidate("1", logprob=value)])
    with pytest.raises(VerificationError, match="expected a finite number"):
        SelfCertainty().score("q", [candidate("1", certainty=value)])


def test_majority_scores_are_vote_shares() -> None:
    model = ScriptedModel(["It is 56.", "54", "56.0", "no idea"])
    verifier = MajorityOfSamples(model=model, task=NumberTask(), samples=4, max_new_tokens=16, seed=3)
    verdicts = verifier.score("What is 7 times 8?", [candidate("56"), candidate("54"), candidate(None)])
    assert [verdict.score for verdict in verdicts] == [0.5, 0.25, 0.0]
    assert verdicts[0].detail == {"votes": 2, "samples": 4, "answers": ["56", "54", "56.0", None]}
    assert {request.prefix for request in model.requests} == {None}, "samples are zero-shot"
    assert len({request.seed for request in model.requests}) == 4, "samples must differ"
    assert {(request.temperature, request.max_new_tokens) for request in model.requests} == {(0.5, 16)}
    assert len(model.batches) == 1, "all samples run as one batch"


def test_equal_seeds_draw_equal_samples_and_neighbours_share_none() -> None:
    def seeds(seed: int) -> list[int]:
        model = ScriptedModel(["1"])
        task = NumberTask()
        MajorityOfSamples(model=model, task=task, samples=5, max_new_tokens=4, seed=seed).score("q", [candidate("1")])
        return [request.seed for request in model.requests]

    assert seeds(0) == seeds(0) == [sample_seed(0, index) for index in range(5)]
    assert not set(seeds(0)) & set(seeds(1))
    assert all(0 <= seed < 2**63 for seed in seeds(2))


def test_majority_failures_are_failures_not_scores() -> None:
    class Undecided(NumberTask):
        def equivalent(self, left: str, right: str) -> bool:
            raise TaskError(f"cannot compare {left} with {right}")

    pair = [candidate("1"), candidate("2")]
    verifier = MajorityOfSamples(model=ScriptedModel(["1"]), task=Undecided(), samples=2, max_new_tokens=4)
    with pytest.raises(VerificationError, match="cannot compare 1 with 1"):
        verifier.score("q", pair)
    broken = FakeModel(zero_shot_error=ModelError("out of memory"))
    verifier = MajorityOfSamples(model=broken, task=NumberTask(), samples=2, max_new_tokens=4)
    with pytest.raises(VerificationError, match="out of memory"):
        verifier.score("q", pair)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"samples": 2, "temperature": 0.0}])
def test_majority_refuses_what_cannot_be_sampled(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected samples >= 1 and temperature > 0"):
        MajorityOfSamples(model=FakeModel(), task=NumberTask(), max_new_tokens=4, **wrong)  # type: ignore[arg-type]


def test_callable_verifier() -> None:
    verifier = CallableVerifier(lambda question, item: len(question) + item.tokens, name="length")
    assert verifier.name == "length"
    assert [verdict.score for verdict in verifier.score("four", [candidate("1"), candidate("2")])] == [7.0, 7.0]


@pytest.mark.parametrize("value", [math.nan, "high", None, 1j])
def test_callable_verifier_must_return_a_finite_number(value: object) -> None:
    with pytest.raises(VerificationError, match="expected a finite number"):
        CallableVerifier(lambda _question, _item: value).score("q", [candidate("1")])  # type: ignore[arg-type, return-value]


def test_callable_verifier_names_what_its_function_raised() -> None:
    def broken(question: str, item: Candidate) -> float:
        raise ZeroDivisionError(f"no {question} {item.answer}")

    with pytest.raises(VerificationError, match="verifier 'mine' raised ZeroDivisionError: no q 1") as caught:
        CallableVerifier(broken, name="mine").score("q", [candidate("1")])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("make", [MeanLogprob, SelfCertainty, lambda: CallableVerifier(lambda *_: 0.0)])
def test_no_candidates_no_verdicts(make: Callable[[], MeanLogprob]) -> None:
    assert make().score("q", []) == []
