"""Stand-ins for the slow parts: a model, a trainer and a verifier that answer at once and always the same.

They keep the contracts of ``elm_agent.protocols`` (order, errors, cancellation, threads), so what passes with
them can fail with the real parts only for numerical reasons. Nothing here loads a language model.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from elm_agent.errors import InputError, JobCancelled, VerificationError
from elm_agent.protocols import GenerationRequest, Message, Observer, Trained
from elm_agent.records import (
    Candidate,
    Generation,
    KeyKind,
    MemoryKeys,
    ModelFingerprint,
    Recipe,
    Rollout,
    StepRecord,
    Vector,
    Verdict,
    digest_of,
)

if TYPE_CHECKING:
    from elm_agent.softprompt import SoftPrompt

WIDTH = 16
"""E of the fake model; its kv keys are twice as long."""

Reply = Callable[[str, "str | None"], str]
"""``reply(prompt_text, memory_id)``: the completion; ``memory_id`` is None for the zero-shot row."""


def unit_vector(text: str, width: int) -> Vector:
    """A unit float32 vector of shape (width,): the sum of one pseudo-random direction per word of ``text``."""
    total = np.zeros(width)
    for word in text.lower().split() or [""]:
        seed = int.from_bytes(hashlib.sha256(word.encode("utf-8")).digest()[:8], "big")
        total += np.random.default_rng(seed).standard_normal(width)
    unit: Vector = (total / np.linalg.norm(total)).astype(np.float32)
    return unit


def key_of(question: str, kind: KeyKind) -> Vector:
    """Query and key of a question in the fake world: equal questions meet at cosine 1."""
    return unit_vector(question, WIDTH if kind is KeyKind.INPUT else 2 * WIDTH)


def number_reply(prompt_text: str, memory_id: str | None) -> str:
    """The default completion: a number below 100 that depends on the prompt alone."""
    del memory_id
    number = int.from_bytes(hashlib.sha256(prompt_text.encode("utf-8")).digest()[:4], "big") % 100
    return f"The answer is \\boxed{{{number}}}."


def fake_fingerprint(name: str = "fake") -> ModelFingerprint:
    """A fingerprint that depends on ``name`` alone."""
    weights, tokenizer, template = (digest_of([name, part]) for part in ("weights", "tokenizer", "template"))
    return ModelFingerprint(name, weights, tokenizer, template, WIDTH)


class FakeModel:
    """A ``LanguageModel`` whose tokens are UTF-8 bytes and whose text comes from ``reply``.

    ``batches`` lists what ran together: one entry per ``generate`` call, or one row per ``submit``.
    ``memory_error`` and ``zero_shot_error`` are raised by rows with and without a prefix; both can be changed
    between calls, as can ``reply``.
    """

    def __init__(
        self,
        *,
        reply: Reply = number_reply,
        name: str = "fake",
        context_length: int = 4096,
        memory_error: Exception | None = None,
        zero_shot_error: Exception | None = None,
    ) -> None:
        self.reply = reply
        self.memory_error = memory_error
        self.zero_shot_error = zero_shot_error
        self.batches: list[list[GenerationRequest]] = []
        self._fingerprint = fake_fingerprint(name)
        self._context_length = context_length
        self._training = threading.Lock()

    @property
    def fingerprint(self) -> ModelFingerprint:
        return self._fingerprint

    @property
    def context_length(self) -> int:
        return self._context_length

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        ids = tuple("\n".join(message["content"] for message in messages).encode("utf-8"))
        if len(ids) >= self._context_length:
            raise InputError(
                f"the question takes {len(ids)} tokens; the model reads at most {self._context_length}, "
                "ask a shorter question"
            )
        return ids

    def submit(self, request: GenerationRequest) -> Future[Generation]:
        self.batches.append([request])
        return self._settled(request)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        self.batches.append(list(requests))
        return [self._settled(request).result() for request in requests]

    def query(self, question: str, kind: KeyKind) -> Vector:
        return key_of(question, kind)

    def keys(self, prompt: SoftPrompt) -> MemoryKeys:
        text = hashlib.sha256(prompt.prompt_VE.numpy().tobytes()).hexdigest()
        return MemoryKeys(input=key_of(text, KeyKind.INPUT), kv=key_of(text, KeyKind.KV))

    @contextmanager
    def training(self) -> Iterator[None]:
        with self._training:
            yield

    def close(self) -> None:
        """Nothing to free; here because real models have it."""

    def _settled(self, request: GenerationRequest) -> Future[Generation]:
        future: Future[Generation] = Future()
        try:
            future.set_result(self._row(request))
        except Exception as error:  # noqa: BLE001 - a future carries whatever its row raised
            future.set_exception(error)
        return future

    def _row(self, request: GenerationRequest) -> Generation:
        error = self.zero_shot_error if request.prefix is None else self.memory_error
        if error is not None:
            raise error
        prefix_rows = 0 if request.prefix is None else request.prefix.virtual_tokens
        if prefix_rows + len(request.prompt_ids) >= self._context_length:
            raise InputError(
                f"memory and question take {prefix_rows + len(request.prompt_ids)} tokens; "
                f"the model reads at most {self._context_length}"
            )
        memory_id = None if request.prefix is None else request.prefix.memory_id or "unnamed"
        text = self.reply(bytes(request.prompt_ids).decode("utf-8"), memory_id)
        whole = text.encode("utf-8")
        kept = whole[: request.max_new_tokens]
        surprise = hashlib.sha256(kept).digest()[0] / 256
        return Generation(
            text=kept.decode("utf-8", "ignore"),
            token_ids=tuple(kept),
            mean_logprob=-surprise,
            self_certainty=1.0 - surprise,
            finished=len(kept) == len(whole),
            seconds=0.0,
        )


class FakeTrainer:
    """A ``Trainer`` that learns nothing in ``steps`` steps and returns a random prompt of V rows.

    The keys are the fake model's queries of the question, so the memory is nearest to what it was made from.
    ``error`` is raised instead of training when set; ``before_step(step)`` runs before each step (to wait in
    tests); ``trained`` lists the questions that were finished.
    """

    def __init__(
        self,
        *,
        steps: int = 2,
        vote_share: float = 0.75,
        majority_answer: str | None = "42",
        error: Exception | None = None,
        before_step: Callable[[int], None] | None = None,
    ) -> None:
        self.steps = steps
        self.vote_share = vote_share
        self.majority_answer = majority_answer
        self.error = error
        self.before_step = before_step
        self.trained: list[str] = []

    def train(
        self,
        question: str,
        *,
        recipe: Recipe,
        seed: int,
        observe: Observer,
        cancelled: Callable[[], bool],
    ) -> Trained:
        import torch

        from elm_agent.softprompt import SoftPrompt

        if self.error is not None:
            raise self.error
        curve, rollouts = [], []
        for step in range(self.steps):
            if cancelled():
                raise JobCancelled(f"asked to stop before step {step} of {self.steps}")
            if self.before_step is not None:
                self.before_step(step)
            record = self._step(step, recipe)
            curve.append(record)
            rollouts.extend(self._rollouts(step, seed, recipe))
            observe("train.step", asdict(record))
        generator = torch.Generator().manual_seed(seed % 2**63)
        prompt = SoftPrompt(torch.randn(recipe.virtual_tokens, WIDTH, generator=generator))
        self.trained.append(question)
        return Trained(
            prompt=prompt,
            keys=MemoryKeys(input=key_of(question, KeyKind.INPUT), kv=key_of(question, KeyKind.KV)),
            curve=tuple(curve),
            rollouts=tuple(rollouts),
            seed=seed,
            seconds=0.0,
        )

    def _step(self, step: int, recipe: Recipe) -> StepRecord:
        return StepRecord(
            step=step,
            majority_answer=self.majority_answer,
            vote_share=0.0 if self.majority_answer is None else self.vote_share,
            reward_mean=0.0 if self.majority_answer is None else self.vote_share,
            loss=0.0,
            kl=0.0,
            grad_norm=1.0,
            clip_fraction=0.0,
            tokens=recipe.rollouts,
            finished_share=1.0,
            seconds_rollout=0.0,
            seconds_update=0.0,
        )

    def _rollouts(self, step: int, seed: int, recipe: Recipe) -> list[Rollout]:
        right = 0 if self.majority_answer is None else round(self.vote_share * recipe.rollouts)
        return [
            Rollout(
                step=step,
                index=index,
                seed=seed + index,
                text=self.majority_answer or "" if index < right else "no idea",
                answer=self.majority_answer if index < right else None,
                reward=float(index < right),
                tokens=1,
                finished=True,
            )
            for index in range(recipe.rollouts)
        ]


class FixedVerifier:
    """A ``Verifier`` with two fixed scores: one for candidates of a memory, one for the plain one."""

    name = "fixed"

    def __init__(self, *, memory: float = 1.0, zero_shot: float = 0.0, fail: bool = False) -> None:
        self.memory = memory
        self.zero_shot = zero_shot
        self.fail = fail
        self.calls = 0

    def score(self, question: str, candidates: Sequence[Candidate]) -> list[Verdict]:
        del question
        self.calls += 1
        if self.fail:
            raise VerificationError("the fixed verifier was told to fail")
        return [Verdict(self.zero_shot if item.memory_id is None else self.memory) for item in candidates]
