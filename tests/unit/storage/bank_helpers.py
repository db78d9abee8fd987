"""A small bank: vectors of width 4, a made-up model, trained prompts without any training."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from elm_agent.protocols import Observer, Trained
from elm_agent.records import MemoryKeys, MemoryRecord, MemoryState, ModelFingerprint, Recipe, Rollout, StepRecord
from elm_agent.softprompt import SoftPrompt
from elm_agent.storage.bank import Bank

MODEL = ModelFingerprint("tiny", "sha256:w", "sha256:t", "sha256:c", 4)
RECIPE = Recipe(virtual_tokens=2)


def unit(*values: float) -> np.ndarray:
    vector = np.asarray(values, dtype=np.float32)
    return vector / np.linalg.norm(vector)


def trained(key: np.ndarray, *, kv: np.ndarray | None = None, seed: int = 7) -> Trained:
    """As a trainer returns it; the prompt differs with the seed."""
    prompt_VE = torch.randn((2, 4), generator=torch.Generator().manual_seed(seed))
    step = StepRecord(
        step=0,
        majority_answer="56",
        vote_share=0.75,
        reward_mean=0.75,
        loss=-0.1,
        kl=0.0,
        grad_norm=1.5,
        clip_fraction=0.0,
        tokens=16,
        finished_share=1.0,
        seconds_rollout=0.5,
        seconds_update=0.25,
    )
    rollout = Rollout(
        step=0, index=0, seed=2**63 - 1, text="It is 56\x00", answer="56", reward=1.0, tokens=4, finished=True
    )
    keys = MemoryKeys(input=key, kv=kv)
    return Trained(
        prompt=SoftPrompt(prompt_VE), keys=keys, curve=(step,), rollouts=(rollout,), seed=seed, seconds=0.75
    )


class Learn(Protocol):
    """Make one memory of a question."""

    def __call__(
        self,
        question: str,
        key: np.ndarray,
        *,
        state: MemoryState = ...,
        namespace: str = ...,
        kv: np.ndarray | None = ...,
        observe: Observer | None = ...,
    ) -> MemoryRecord: ...


def seed_of(question: str) -> int:
    return int.from_bytes(question.encode()[:4])


def learner(bank: Bank) -> Learn:
    """Queue, claim and publish one question."""

    def learn(
        question: str,
        key: np.ndarray,
        *,
        state: MemoryState = MemoryState.ACTIVE,
        namespace: str = "default",
        kv: np.ndarray | None = None,
        observe: Observer | None = None,
    ) -> MemoryRecord:
        bank.jobs.enqueue(namespace, question, task="math", model_id=MODEL.id, recipe=RECIPE)
        lease = bank.jobs.claim("worker", lease_seconds=60)
        assert lease is not None
        assert lease.job.question == question
        return bank.publish(
            lease,
            trained(key, kv=kv, seed=seed_of(question)),
            task="math",
            model=MODEL,
            recipe=RECIPE,
            state=state,
            reason=None,
            observe=observe,
        )

    return learn
