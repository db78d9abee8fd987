"""What a back end must do. Implementations need not inherit; they are judged by behaviour.

Common promises: every method may be called from several threads; a missing id raises ``NotFound`` (or the
error named here), never returns None by accident; no method leaves half a change behind when it raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from elm_agent.records import (
    Candidate,
    Generation,
    Hit,
    KeyKind,
    MemoryKeys,
    ModelFingerprint,
    Recipe,
    Rollout,
    StepRecord,
    Vector,
    Verdict,
)

if TYPE_CHECKING:  # torch enters in softprompt; this module stays light
    from elm_agent.adapters import Kept, Weights
    from elm_agent.softprompt import SoftPrompt

Message = dict[str, str]
"""One chat message: ``{"role": ..., "content": ...}``."""

Observer = Callable[[str, dict[str, Any]], None]
"""Told each named step of learning and writing as it is reached, with plain values. See ``LEARN_STEPS``."""

LEARN_STEPS = (
    "job.claimed",
    "train.step",  # detail: StepRecord as a dict; once per optimizer step
    "train.done",
    "tensor.temporary",  # bytes written and synced under a temporary name
    "tensor.durable",  # renamed to the content hash, folder synced
    "publish.before_commit",  # inside the SQL transaction, everything written
    "publish.committed",  # from here on the memory exists
    "index.fed",
)
"""Every place at which a crash is tested: before and after each, nothing acknowledged is lost."""


ANSWER_STEPS = (
    "answer.retrieved",  # memory_id, memory_namespace, similarity, memory_failed
    "answer.generated",  # once for each candidate; source, failed, tokens, finished, memory_id
    "answer.routed",  # route
    "answer.noted",  # use_id, job_id
    "answer.failed",  # node, reason: there is no answer, or nobody waits for it any more
    "answer.left",  # an agent's model was asked, and called a tool or wrote what cannot be judged
)
"""Told while a question is answered, with its ``answer_id``, ``namespace`` and the ``seconds`` that the step took."""


class Task(Protocol):
    """A kind of question: how to ask it and how to compare answers. Pure; safe from any thread."""

    name: str

    def messages(self, question: str) -> list[Message]:
        """The chat that asks ``question``."""
        ...

    def extract(self, text: str) -> str | None:
        """The final answer in a completion, or None when there is none. Raises ``TaskError``."""
        ...

    def equivalent(self, left: str, right: str) -> bool:
        """Whether two extracted answers mean the same; symmetric. Raises ``TaskError``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One row to generate. ``prompt_ids`` is the rendered question; ``prefix`` a memory it is read with."""

    prompt_ids: tuple[int, ...]
    prefix: Kept | None = None
    max_new_tokens: int
    temperature: float = 0.0  # 0: greedy
    seed: int = 0  # of the sampling; the same seed gives the same text whatever else is in the batch


class LanguageModel(Protocol):
    """A frozen local language model, shared by answering and learning."""

    @property
    def fingerprint(self) -> ModelFingerprint: ...

    @property
    def context_length(self) -> int:
        """Most positions (soft prompt, question and completion together)."""
        ...

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of a chat with the generation prompt. Raises ``InputError`` if it cannot fit."""
        ...

    def submit(self, request: GenerationRequest) -> Future[Generation]:
        """Queue one row; rows that arrive together run as one batch, whoever sent them."""
        ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Submit all and wait for all, in order."""
        ...

    def query(self, question: str, kind: KeyKind) -> Vector:
        """The unit retrieval query of a question (METHOD section 2). Raises ``ModelError`` if unsupported."""
        ...

    def keys(self, prompt: SoftPrompt) -> MemoryKeys:
        """Both unit retrieval keys of a trained prompt."""
        ...

    def training(self) -> AbstractContextManager[None]:
        """Hold the model for one training step; waits while answers wait, so that answering goes first."""
        ...


class RowStream(Protocol):
    """The pieces of one row's text in order; together they are its text."""

    def __iter__(self) -> Iterator[str]:
        """Waits for each piece. Raises what ended the row, if an error did."""
        ...

    def result(self) -> Generation:
        """The whole generation, when it is there."""
        ...

    def close(self) -> None:
        """Give the row up: it leaves the batch at the next token. Harmless afterwards."""
        ...


@runtime_checkable
class StreamingModel(Protocol):
    """What a language model may have besides: the text of a row piece by piece."""

    def stream(self, request: GenerationRequest) -> RowStream:
        """Queue one row and have its text as it is drawn. Raises as ``LanguageModel.submit``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a trainer returns: the memory, its keys, and the whole trajectory.

    ``prompt``: a soft prompt, or what another parameterisation trains.
    """

    prompt: Kept | Weights
    keys: MemoryKeys
    curve: tuple[StepRecord, ...]
    rollouts: tuple[Rollout, ...]
    seed: int
    seconds: float
    entropies: tuple[float, ...] = ()  # of each step: mean -log p of its tokens, nats; empty: not known
    initial_norm: float | None = None  # of all that is trained, before the first step; None: not known

    @property
    def norm(self) -> float:
        """The Euclidean norm of all that was trained."""
        return float(sum(float(tensor.double().square().sum()) for tensor in self.prompt.tensors.values()) ** 0.5)

    @property
    def final(self) -> StepRecord:
        return self.curve[-1]

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        return sum(tensor.numel() for tensor in self.prompt.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of what was trained, as it is kept: in float32."""
        return sum(tensor.nbytes for tensor in self.prompt.tensors.values())

    @property
    def seconds_per_step(self) -> float:
        """Wall time of a step in the mean: its completions and its update."""
        return sum(record.seconds for record in self.curve) / len(self.curve)


class Trainer(Protocol):
    """Distils one question into one memory (METHOD section 1)."""

    def train(
        self,
        question: str,
        *,
        recipe: Recipe,
        seed: int,
        observe: Observer,
        cancelled: Callable[[], bool],
    ) -> Trained:
        """Train; ``observe("train.step", {...})`` after every step; checks ``cancelled`` between steps.

        Raises:
            JobCancelled: ``cancelled()`` became true.
            TrainingError: a loss, a logit or the prompt stopped being finite; its ``curve`` has the steps before.
            InputError: the question does not fit the model.
        """
        ...


class Verifier(Protocol):
    """Judges candidates that differ. Raises ``VerificationError``; never turns a failure into a score."""

    name: str

    def score(self, question: str, candidates: Sequence[Candidate]) -> list[Verdict]:
        """One verdict for each candidate, in order, on one scale; scores are finite, higher is better."""
        ...


class TensorCapability(StrEnum):
    """What a tensor store promises beyond ``BASE``, which every store does; the suite asks only for what is named."""

    BASE = "base"  # everything that ``TensorStore`` says
    DURABLE = "durable"  # what was put outlives the process that put it
    SHARED = "shared"  # several processes may use it at once
    REMOTE = "remote"  # several machines may: no folder of this one holds it


class TensorStore(Protocol):
    """Immutable bytes under namespace and content hash. Put is durable when it returns; same bytes, same digest.

    The same bytes in two namespaces are two objects: deleting one leaves the other, and a digest of one namespace
    is missing in the other. What is no namespace raises ``SettingsError``, a malformed digest ``TensorCorrupt``.
    """

    @property
    def capabilities(self) -> frozenset[TensorCapability]: ...

    def put(self, namespace: str, data: bytes, observe: Observer | None = None) -> str:
        """Store bytes, return ``sha256:<hex>``; storing again is harmless. A crash leaves no half file."""
        ...

    def get(self, namespace: str, digest: str, *, cached: bool = True) -> bytes:
        """The bytes, digest checked. Raises ``TensorMissing`` or ``TensorCorrupt``.

        ``cached=False``: what the store itself has, never a copy that this machine keeps of it; for audits.
        """
        ...

    def delete(
        self,
        namespace: str,
        digest: str,
        *,
        older_than_seconds: float | None = None,
        unless: Callable[[], bool] | None = None,
    ) -> bool:
        """Remove, this machine's cached copy too; False when it was not there, was stored (again) less than
        ``older_than_seconds`` ago, or ``unless()``, asked at the last moment, says that it is to stay.

        Look and removal are one step: no ``put`` of the same bytes ends in between, so what a concurrent one renews
        is never removed by it.
        """
        ...

    def keeps_deleted(self) -> str | None:
        """Why what was deleted may still be there, in one sentence; None where it is gone."""
        ...

    def age(self, namespace: str, digest: str) -> float:
        """Seconds since the bytes were last stored. Raises ``TensorMissing``."""
        ...

    def digests(self, namespace: str) -> Iterator[str]:
        """Every digest stored in the namespace, in no order; temporary files are not listed."""
        ...

    def namespaces(self) -> list[str]:
        """Every namespace with a digest, sorted."""
        ...

    def temporary(self, older_than_seconds: float) -> list[str]:
        """Names of what a crashed ``put`` left at least that long ago, for ``doctor``."""
        ...

    def sweep(self, older_than_seconds: float) -> list[str]:
        """Delete what ``temporary`` names, and return the names."""
        ...


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One key vector to index, unit length, float32."""

    memory_id: str
    vector: Vector = field(repr=False)


class IndexCapability(StrEnum):
    """What an index promises beyond ``BASE``, which every index does. Nobody may rely on what is not listed."""

    BASE = "base"  # everything that ``KeyIndex`` says
    EXACT = "exact"  # the hits are the nearest keys and their similarities right to float32; else: candidates
    DURABLE = "durable"  # outlives its process, and says when it lost everything (``FedIndex`` of storage)
    SHARED = "shared"  # several processes may have it open, and each finds what another has applied
    WIDE = "wide"  # keys of any width as they are; else: above a limit, by a projection
    ERASES = "erases"  # after ``scrub`` no file of the index holds a vector that was deleted


class KeyIndex(Protocol):
    """Nearest keys of one namespace and key kind. Derived: it may be wiped and fed again at any time."""

    @property
    def name(self) -> str:
        """At most 32 characters; another for each place the keys may lie: how far it was fed is noted under it."""
        ...

    @property
    def capabilities(self) -> frozenset[IndexCapability]: ...

    def apply(self, namespace: str, kind: KeyKind, upsert: Iterable[IndexEntry], delete: Iterable[str]) -> None:
        """Idempotent: the same change twice is one change; deleting an unknown id is harmless.

        A process killed half-way leaves whole entries, each old or new.
        """
        ...

    def search(self, namespace: str, kind: KeyKind, query: Vector, k: int) -> list[Hit]:
        """At most k hits, best first, ties by memory id. An unknown namespace has none.

        Raises ``IndexUnavailable``.
        """
        ...

    def ids(self, namespace: str, kind: KeyKind) -> set[str]:
        """What is indexed, for ``doctor``."""
        ...

    def scrub(self, namespace: str) -> bool:
        """Remove what deletions left behind in files; with ``ERASES`` nothing of it is left afterwards.

        Returns whether live entries of the namespace may have gone too, so that it has to be fed from the beginning.
        """
        ...

    def wipe(self) -> None: ...

    def close(self) -> None: ...


class JobRunner(Protocol):
    """Who works off the queue: nobody here (external), a thread, the caller itself (inline), workers on Ray.

    The queue alone decides whose a job is. A runner that dies, in whole or in part, loses no job: its leases run
    out and others take over. ``start`` may raise ``JobError``; starting again is harmless.
    """

    def start(self) -> None: ...

    def notify(self) -> None:
        """A job was queued. Returns at once, except inline, where the job is done before it returns."""
        ...

    def wait_idle(self, timeout: float | None = None) -> bool:
        """Wait until none of the jobs it takes is queued or running; False on time-out.

        Raises ``JobError`` when jobs wait and nobody here will ever work on them.
        """
        ...

    def stop(self) -> None:
        """Stop after the current training step; an unfinished job goes back to the queue. Idempotent."""
        ...
