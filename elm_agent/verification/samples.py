"""Majority of extra samples: the answer that the plain model gives more often is the better one."""

from __future__ import annotations

from collections.abc import Sequence

from elm_agent.errors import ElmError, InputError, VerificationError
from elm_agent.protocols import GenerationRequest, LanguageModel, Task
from elm_agent.records import Candidate, Verdict, digest_of
from elm_agent.verification.verdicts import verdict


class MajorityOfSamples:
    """Draws ``samples`` zero-shot completions of the question, all in one batch.

    The score of a candidate is the share of samples whose answer is equivalent to its own, in [0, 1]; a sample
    without an answer counts for nobody, a candidate without one scores 0. Equal seeds draw equal samples.
    """

    name = "majority"

    def __init__(
        self,
        *,
        model: LanguageModel,
        task: Task,
        samples: int,
        max_new_tokens: int,
        temperature: float = 0.5,
        seed: int = 0,
    ) -> None:
        if samples < 1 or temperature <= 0:
            raise InputError(f"expected samples >= 1 and temperature > 0; got {samples} and {temperature}")
        self._model = model
        self._task = task
        self._samples = samples
        self._max_new_tokens = max_new_tokens
        self._temperature = temperature
        self._seed = seed

    def score(self, question: str, candidates: Sequence[Candidate]) -> list[Verdict]:
        """One verdict for each candidate. Raises ``VerificationError`` when sampling or comparing fails."""
        try:
            answers = self._sample(question)
            votes = [sum(self._same(item.answer, answer) for answer in answers) for item in candidates]
        except ElmError as error:
            raise VerificationError(f"the vote of extra samples failed: {error}") from error
        return [
            verdict(count / self._samples, verifier=self.name, votes=count, samples=self._samples, answers=answers)
            for count in votes
        ]

    def _sample(self, question: str) -> list[str | None]:
        texts = draw_texts(
            question,
            model=self._model,
            task=self._task,
            samples=self._samples,
            max_new_tokens=self._max_new_tokens,
            temperature=self._temperature,
            seed=self._seed,
        )
        return [self._task.extract(text) for text in texts]

    def _same(self, left: str | None, right: str | None) -> bool:
        return left is not None and right is not None and self._task.equivalent(left, right)


def draw_texts(
    question: str,
    *,
    model: LanguageModel,
    task: Task,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int = 0,
) -> list[str]:
    """Zero-shot completions of the question, all in one batch. Raises what the model raises."""
    prompt_ids = model.encode(task.messages(question))
    generations = model.generate(
        [
            GenerationRequest(
                prompt_ids=prompt_ids,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=sample_seed(seed, index),
            )
            for index in range(samples)
        ]
    )
    return [generation.text for generation in generations]


def sample_seed(seed: int, index: int) -> int:
    """The seed of one sample, below 2**63; neighbouring base seeds share none."""
    return int(digest_of(["majority of samples", seed, index]).removeprefix("sha256:")[:15], 16)
