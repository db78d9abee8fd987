"""Banks full of made-up memories for measurements: many rows quickly, nothing learned. Times nothing itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from elm_agent.errors import TensorMissing
from elm_agent.protocols import Observer, TensorCapability, Trained
from elm_agent.records import (
    KeyKind,
    MemoryKeys,
    MemoryState,
    ModelFingerprint,
    Recipe,
    Rollout,
    Route,
    StepRecord,
    UseOutcome,
    UseRecord,
    digest_of,
    new_id,
    utcnow,
)

if TYPE_CHECKING:
    from elm_agent.storage.adopt import Adopted
    from elm_agent.storage.bank import Bank

VIRTUAL_TOKENS = 4
BATCH = 1000
RECIPE = Recipe(virtual_tokens=VIRTUAL_TOKENS, rollouts=2, steps=1)
STEP = StepRecord(
    step=0,
    majority_answer="42",
    vote_share=0.75,
    reward_mean=0.75,
    loss=0.0,
    kl=0.0,
    grad_norm=1.0,
    clip_fraction=0.0,
    tokens=64,
    finished_share=1.0,
    seconds_rollout=0.5,
    seconds_update=0.5,
)
ROLLOUTS = tuple(
    Rollout(step=0, index=n, seed=n, text="The answer is 42.", answer="42", reward=1.0, tokens=8, finished=True)
    for n in range(RECIPE.rollouts)
)


class NoTensors:
    """A ``TensorStore`` without a disk: it hashes what it is given and keeps nothing but how much it was."""

    capabilities = frozenset({TensorCapability.BASE})

    def __init__(self) -> None:
        self.bytes = 0

    def put(self, namespace: str, data: bytes, observe: Observer | None = None) -> str:  # noqa: ARG002
        self.bytes += len(data)
        return "sha256:" + hashlib.sha256(data).hexdigest()

    def get(self, namespace: str, digest: str, *, cached: bool = True) -> bytes:  # noqa: ARG002
        raise TensorMissing(f"tensor {digest[:19]}… was never kept: this store only counts")

    def delete(
        self,
        namespace: str,  # noqa: ARG002
        digest: str,  # noqa: ARG002
        *,
        older_than_seconds: float | None = None,  # noqa: ARG002
        unless: Callable[[], bool] | None = None,  # noqa: ARG002
    ) -> bool:
        return False

    def keeps_deleted(self) -> str | None:
        return None

    def age(self, namespace: str, digest: str) -> float:  # noqa: ARG002  as if it had just been put
        return 0.0

    def digests(self, namespace: str) -> Iterator[str]:  # noqa: ARG002
        return iter(())

    def namespaces(self) -> list[str]:
        return []

    def temporary(self, older_than_seconds: float) -> list[str]:  # noqa: ARG002
        return []

    def sweep(self, older_than_seconds: float) -> list[str]:  # noqa: ARG002
        return []


def model_of(width: int) -> ModelFingerprint:
    weights, tokenizer, template = (digest_of([width, part]) for part in ("weights", "tokenizer", "template"))
    return ModelFingerprint(f"made-up-{width}", weights, tokenizer, template, width)


def unit_rows(rng: np.random.Generator, count: int, width: int) -> NDArray[np.float32]:
    """(count, width), float32, unit rows."""
    rows = rng.standard_normal((count, width), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)  # type: ignore[no-any-return]


def made_up(rng: np.random.Generator, count: int, width: int) -> list[Adopted]:
    """Active memories, each with its own prompt of ``VIRTUAL_TOKENS`` rows and an input key of width ``width``."""
    import torch

    from elm_agent.softprompt import SoftPrompt
    from elm_agent.storage.adopt import Adopted

    model = model_of(width)
    prompts = torch.from_numpy(rng.standard_normal((count, VIRTUAL_TOKENS, width), dtype=np.float32))
    keys = unit_rows(rng, count, width)
    numbers = rng.integers(0, 2**62, count).tolist()
    return [
        Adopted(
            question=f"What is {number} times 7, and how do you know?",
            task="math",
            prompt=SoftPrompt(prompt),
            keys=MemoryKeys(input=key, kv=None),
            model=model,
            recipe=RECIPE,
            origin="simulation",
            state=MemoryState.ACTIVE,
            final_vote_share=number % 101 / 100,
            majority_answer="42",
            curve=(STEP,),
            rollouts=ROLLOUTS,
            library_version="simulation",
        )
        for number, prompt, key in zip(numbers, prompts, keys, strict=True)
    ]


def fill(bank: Bank, namespace: str, rng: np.random.Generator, count: int, width: int) -> Iterator[int]:
    """Adopt ``count`` memories in batches; yields how many each batch had."""
    for start in range(0, count, BATCH):
        some = made_up(rng, min(BATCH, count - start), width)
        bank.adopt(namespace, some, actor="simulation")
        yield len(some)


def trained(rng: np.random.Generator, width: int) -> Trained:
    """What a trainer returns, at once."""
    [made] = made_up(rng, 1, width)
    return Trained(prompt=made.prompt, keys=made.keys, curve=made.curve, rollouts=made.rollouts, seed=0, seconds=0.0)


def use_of(namespace: str, memory_id: str, **other: Any) -> UseRecord:
    """A use of that memory; ``other``: values of other fields."""
    usual = UseRecord(
        id=new_id("use"),
        namespace=namespace,
        memory_id=memory_id,
        question="What is 6 times 7?",
        similarity=0.9,
        key_kind=KeyKind.INPUT,
        route=Route.MEMORY,
        reason=None,
        answer="42",
        memory_answer="42",
        zero_shot_answer="41",
        outcome=UseOutcome.UNKNOWN,
        created_at=utcnow(),
    )
    return replace(usual, **other)


def skewed(total: int, parts: int) -> list[int]:
    """``parts`` sizes that add up to ``total``, the n-th about 1/n of the first (Zipf), none smaller than 1."""
    weights = 1.0 / np.arange(1, parts + 1)
    edges = np.round(np.cumsum(weights) / weights.sum() * (total - parts)).astype(int)
    sizes: Sequence[int] = np.diff(edges, prepend=0).tolist()
    return [1 + size for size in sizes]
