"""What every ``Task`` and ``Verifier`` must do, as pytest classes: subclass one, give its fixture.

    class TestMine(TaskSuite):
        questions = ("Who wrote Emma?",)
        equal = (("Jane Austen", "jane austen"),)
        different = (("Jane Austen", "Emily Brontë"),)

        @pytest.fixture
        def task(self):
            return MyTask()

The promises are those of ``elm_agent.protocols``.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from itertools import product

import pytest

from elm_agent.errors import TaskError, VerificationError
from elm_agent.protocols import Task, Verifier
from elm_agent.records import Candidate

NASTY = (
    "",
    " \n\t ",
    "\x00",
    "\ud800",
    "größer 数学 🧠 \u202eשלום\u202c",
    "\\boxed{",
    "\\boxed{}",
    "\\boxed{{{{{{",
    "}" * 50,
    "()" * 2_000,
    "9" * 5_000,
    "1e999999999",
    "1/0",
    "nan",
    "-inf",
    "x" * 100_000,
    "<script>'; DROP TABLE jobs;--",
    "__import__('os').system('true')",
)
"""Answers and completions that a model may well write."""


class TaskSuite:
    """Judges a ``Task``. Override ``task``, and give pairs of its answers that are equal and that differ."""

    questions: Sequence[str] = ("What is 7 times 8?", "größer als 数学 🧠?")
    equal: Sequence[tuple[str, str]] = ()
    different: Sequence[tuple[str, str]] = ()
    boxed: Sequence[tuple[str, str]] = ()
    """Completions and an answer that is equivalent to what must be extracted."""

    @pytest.fixture
    def task(self) -> Task:
        raise NotImplementedError("give a fixture `task` that returns a Task")

    def compare(self, task: Task, left: str, right: str) -> bool | None:
        """None where comparing failed, as it may: by ``TaskError`` alone."""
        try:
            same = task.equivalent(left, right)
        except TaskError:
            return None
        assert isinstance(same, bool)
        return same

    def test_it_has_a_name_that_a_job_row_can_hold(self, task: Task) -> None:
        assert isinstance(task.name, str)
        assert 1 <= len(task.name.strip()) <= 100

    def test_a_chat_asks_the_question(self, task: Task) -> None:
        for question in self.questions:
            messages = task.messages(question)
            assert messages
            assert all(
                set(message) == {"role", "content"} and all(isinstance(part, str) for part in message.values())
                for message in messages
            )
            assert messages[-1]["role"] == "user"
            assert any(question in message["content"] for message in messages)

    def test_the_same_question_is_asked_in_the_same_words(self, task: Task) -> None:
        for question in self.questions:
            first = task.messages(question)
            before = pickle.dumps(first)
            first.append({"role": "user", "content": "spoilt"})
            assert pickle.dumps(task.messages(question)) == before

    def test_what_is_no_answer_is_none(self, task: Task) -> None:
        for text in ("", " \n\t ", "\x00"):
            assert task.extract(text) is None

    @pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
    def test_any_completion_is_read(self, task: Task, text: str) -> None:
        for completion in (text, f"So the answer is \\boxed{{{text}}}."):
            try:
                answer = task.extract(completion)
            except TaskError:
                continue
            assert answer is None or (isinstance(answer, str) and answer.strip())
            assert task.extract(completion) == answer

    def test_the_answer_is_found(self, task: Task) -> None:
        for completion, expected in self.boxed:
            answer = task.extract(completion)
            assert answer is not None
            assert task.equivalent(answer, expected), (completion, answer, expected)

    def test_an_answer_is_equivalent_to_itself(self, task: Task) -> None:
        for answer in {part for pair in (*self.equal, *self.different) for part in pair}:
            assert task.equivalent(answer, answer)

    def test_equivalence_is_symmetric(self, task: Task) -> None:
        assert self.equal, "give pairs of equal answers"
        assert self.different, "give pairs of different answers"
        for expected, pairs in ((True, self.equal), (False, self.different)):
            for left, right in pairs:
                assert (task.equivalent(left, right), task.equivalent(right, left)) == (expected, expected), (
                    left,
                    right,
                )

    def test_nasty_answers_are_compared_symmetrically_or_refused(self, task: Task) -> None:
        some = [*NASTY, *(pair[0] for pair in self.equal[:2])]
        for left, right in product(some, some):
            assert self.compare(task, left, right) == self.compare(task, right, left), (left[:40], right[:40])

    def test_threads_get_what_one_gets(self, task: Task) -> None:
        pairs = [*self.equal, *self.different] * 5

        def work(pair: tuple[str, str]) -> tuple[bool | None, str | None]:
            return self.compare(task, *pair), task.extract(f"\\boxed{{{pair[0]}}}")

        alone = [work(pair) for pair in pairs]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(work, pairs)) == alone


class VerifierCapability(StrEnum):
    """What a verifier may lack: then those tests are skipped."""

    DETERMINISTIC = "deterministic"  # the same candidates get the same scores
    INDEPENDENT = "independent"  # a candidate's score does not depend on its neighbours or their order
    FAILS = "fails"  # the suite can make it fail: see ``failing``


class VerifierSuite:
    """Judges a ``Verifier``. Override ``verifier``, and ``failing`` where it can be made to fail."""

    capabilities: frozenset[VerifierCapability] = frozenset(
        {VerifierCapability.DETERMINISTIC, VerifierCapability.INDEPENDENT}
    )
    question = "What is 7 times 8?"
    longest = 20_000
    """Characters of a long solution: the verifier scores it or refuses it."""

    @pytest.fixture
    def verifier(self) -> Verifier:
        raise NotImplementedError("give a fixture `verifier` that returns a Verifier")

    @pytest.fixture
    def failing(self) -> Verifier:
        raise NotImplementedError("give a fixture `failing` whose `score` cannot succeed")

    def need(self, capability: VerifierCapability) -> None:
        if capability not in self.capabilities:
            pytest.skip(f"this verifier is not {capability}")

    def scores(self, verifier: Verifier, candidates: Sequence[Candidate]) -> list[float]:
        verdicts = verifier.score(self.question, candidates)
        assert len(verdicts) == len(candidates)
        assert all(isinstance(verdict.score, float) and math.isfinite(verdict.score) for verdict in verdicts)
        assert all(isinstance(verdict.detail, dict) for verdict in verdicts)
        return [verdict.score for verdict in verdicts]

    def test_it_has_a_name(self, verifier: Verifier) -> None:
        assert isinstance(verifier.name, str)
        assert verifier.name.strip()

    def test_nothing_to_judge_is_no_verdict(self, verifier: Verifier) -> None:
        assert verifier.score(self.question, []) == []

    @pytest.mark.parametrize("count", [1, 2, 9])
    def test_one_finite_verdict_for_each(self, verifier: Verifier, count: int) -> None:
        self.scores(verifier, [judged(f"It is {n}.", str(n)) for n in range(count)])

    def test_what_is_judged_is_left_as_it_was(self, verifier: Verifier) -> None:
        pair = [judged("It is 56.", "56"), judged("It is 54.", None)]
        before = [asdict(item) for item in pair]
        self.scores(verifier, pair)
        assert [asdict(item) for item in pair] == before

    def test_the_order_of_verdicts_is_the_order_of_candidates(self, verifier: Verifier) -> None:
        self.need(VerifierCapability.INDEPENDENT)
        several = [judged(f"{'word ' * n}so it is {n}.", str(n), logprob=-n - 0.5) for n in range(4)]
        forward = self.scores(verifier, several)
        assert self.scores(verifier, several[::-1])[::-1] == pytest.approx(forward, rel=1e-4, abs=1e-6)
        assert [self.scores(verifier, [item])[0] for item in several] == pytest.approx(forward, rel=1e-4, abs=1e-6)

    def test_again_is_the_same(self, verifier: Verifier) -> None:
        self.need(VerifierCapability.DETERMINISTIC)
        pair = [judged("It is 56.", "56"), judged("It is 54.", "54")]
        assert self.scores(verifier, pair) == self.scores(verifier, pair)

    @pytest.mark.parametrize("text", [text for text in NASTY if len(text) < 1_000])
    def test_any_text_is_judged_or_refused(self, verifier: Verifier, text: str) -> None:
        self.judged_or_refused(verifier, [judged(text, text or None), judged("It is 56.", None)])

    def test_a_long_text_is_judged_or_refused(self, verifier: Verifier) -> None:
        self.judged_or_refused(verifier, [judged("and so on " * (self.longest // 10), "56")])

    def judged_or_refused(self, verifier: Verifier, candidates: Sequence[Candidate]) -> None:
        with suppress(VerificationError):
            self.scores(verifier, candidates)

    def test_a_number_that_is_none_is_not_a_score(self, verifier: Verifier) -> None:
        """Values that are not finite are refused or not looked at, never passed on."""
        self.judged_or_refused(verifier, [judged("It is 56.", "56", logprob=math.nan, certainty=math.inf)])

    def test_a_failure_is_raised_not_scored(self, request: pytest.FixtureRequest) -> None:
        self.need(VerifierCapability.FAILS)
        failing: Verifier = request.getfixturevalue("failing")
        with pytest.raises(VerificationError, match=r"\w"):
            failing.score(self.question, [judged("It is 56.", "56")])

    def test_threads(self, verifier: Verifier) -> None:
        pairs = [[judged(f"It is {n}.", str(n)), judged("It is 54.", "54")] for n in range(8)]
        alone = [self.scores(verifier, pair) for pair in pairs]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda pair: self.scores(verifier, pair), pairs))
        if VerifierCapability.DETERMINISTIC in self.capabilities:
            assert together == [pytest.approx(scores, rel=1e-4, abs=1e-6) for scores in alone]


def judged(text: str, answer: str | None, *, logprob: float = -1.0, certainty: float = 2.0) -> Candidate:
    """A candidate as an answer leaves it."""
    return Candidate(
        text=text,
        answer=answer,
        tokens=max(1, len(text)),
        mean_logprob=logprob,
        self_certainty=certainty,
        finished=True,
        seconds=0.0,
    )
