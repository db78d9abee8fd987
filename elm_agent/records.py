"""What the library speaks of: ids, enums of outcome and frozen records. Knows nothing of torch, SQL or graphs.

Shapes in names: V virtual tokens, E embedding width, L layers, G rollouts, S steps, T completion tokens.
All times are aware UTC datetimes; all durations are seconds.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
import time
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]
    """A one-dimensional float32 array."""
else:  # numpy would double the time of `import elm_agent.settings`
    Vector = Any

FORMAT_VERSION = 1
"""Version of what is stored; raised when an older library could not read it."""

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""What no database stores in a text: NUL, and halves of surrogate pairs, which UTF-8 does not have."""


def utcnow() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


def new_id(prefix: str) -> str:
    """A sortable random id such as ``mem_0193f6c2a4d1b7e95c20``: 12 hex digits of milliseconds, 10 random."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(5)}"


def is_storable(text: str) -> bool:
    """Whether every database takes the text as it is; see ``UNSTORABLE``."""
    return UNSTORABLE.search(text) is None


def digest_of(value: Any) -> str:
    """``sha256:<hex>`` of the canonical JSON of ``value`` (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def question_digest(question: str) -> str:
    """Digest that identifies a question: surrounding and repeated white space does not count."""
    return digest_of(" ".join(question.split()))


# --- enums of outcome -----------------------------------------------------------------------------------


DISTILLED = "distilled"
"""The objective in the recipe of a memory that several others taught: its rollouts answer each of their questions."""


class Route(StrEnum):
    """Which answer was returned, and why."""

    AGREED = "agreed"  # both candidates gave equivalent answers
    MEMORY = "memory"  # they differed, the verifier preferred the memory's
    ZERO_SHOT = "zero_shot"  # they differed, the verifier preferred the plain one (or tied)
    NO_MEMORY = "no_memory"  # nothing was retrieved (empty bank, or below the similarity threshold)
    FAILED_MEMORY = "failed_memory"  # the memory path failed; the reason is recorded, the answer is zero-shot
    MEMORY_ALONE = "memory_alone"  # only the memory's was generated: its utility is proven, and the tier cheap
    DEFERRED = "deferred"  # they differed, the verifier preferred the memory's: until a person decides, the plain one
    OUTVOTED = "outvoted"  # of a use: the memory was heard, and neither its answer nor the plain one was returned


class Tier(StrEnum):
    """What an answer may cost."""

    CHEAP = "cheap"  # one row: the memory's alone, where its utility is proven
    NORMAL = "normal"  # two rows, and the verifier where they differ
    THOROUGH = "thorough"  # two rows, k samples of the plain model, and a vote


class MemoryState(StrEnum):
    """Life of a memory. Only ``active`` memories are retrieved."""

    CANDIDATE = "candidate"  # stored, not admitted by the gate
    ACTIVE = "active"
    QUARANTINED = "quarantined"  # its tensor is missing or altered, or it did harm
    RETIRED = "retired"  # evicted; can be restored
    PURGED = "purged"  # removed for good; only a tombstone and its events are left


class Review(StrEnum):
    """What a person said of a memory that is to serve, or of its answer in place of a plain one."""

    WAITING = "waiting"  # they were asked
    APPROVED = "approved"  # it may serve; its answer is the right one
    REJECTED = "rejected"  # it may not; the plain answer is


AWAITS_REVIEW = "awaits review"
"""Why a memory is a candidate that only a person keeps from serving."""


class JobState(StrEnum):
    """Life of a background job."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class UseOutcome(StrEnum):
    """What a retrieved memory did to one answer, judged against a reference where there is one."""

    UNKNOWN = "unknown"  # no reference
    FIXED = "fixed"  # zero-shot wrong, returned answer right
    BROKEN = "broken"  # zero-shot right, returned answer wrong
    BOTH_RIGHT = "both_right"
    BOTH_WRONG = "both_wrong"


class Feedback(StrEnum):
    """What a user said of the answer that was returned."""

    RIGHT = "right"
    WRONG = "wrong"


class Effect(StrEnum):
    """What a memory's answer was beside the plain one, whichever was returned, as far as a user's word tells."""

    HELPED = "helped"  # right where the plain one was wrong
    SAME = "same"  # both right, or both wrong
    HURT = "hurt"  # wrong where the plain one was right
    PERHAPS_HELPED = "perhaps_helped"  # the plain one was wrong, the memory's another; or right, with no plain one
    PERHAPS_HURT = "perhaps_hurt"  # wrong, and the plain one was another, or there was none


class EventKind(StrEnum):
    """What can happen to a memory; every change of the bank is one event."""

    CREATED = "created"
    GATED = "gated"  # the gate kept it a candidate
    ACTIVATED = "activated"
    QUARANTINED = "quarantined"
    EVICTED = "evicted"
    RESTORED = "restored"
    PINNED = "pinned"
    UNPINNED = "unpinned"
    REPAIRED = "repaired"
    USED = "used"  # several uses counted together, see ``memory.maintain``
    REVIEWED = "reviewed"  # a person looked at it
    VALIDITY = "validity"  # how long it may serve was set or lifted
    PURGED = "purged"
    EXPORTED = "exported"
    IMPORTED = "imported"
    KEY_ROTATED = "key_rotated"
    ERASED = "erased"  # all that came from one subject was purged
    MOVED = "moved"  # the bank was moved to other back ends
    MERGED = "merged"  # it took the place of others, which its detail names; see ``memory.condensing``
    NOT_MERGED = "not_merged"  # a probe spoke against it; of the namespace as a whole


class KeyKind(StrEnum):
    """How a memory is found again (METHOD section 2)."""

    INPUT = "input"
    KV = "kv"


# --- model and recipe -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelFingerprint:
    """What a memory depends on: weights, tokenizer and chat template, each a tagged digest."""

    name: str  # what the user calls it
    weights: str
    tokenizer: str
    template: str
    width: int  # E

    @property
    def id(self) -> str:
        """One digest over weights, tokenizer and template; the name does not count."""
        return digest_of([self.weights, self.tokenizer, self.template, self.width])


EXACT = {"skip_equal_rewards": False, "stop_when_settled": 0, "rollout_weights": "exact", "rollout_drafts": False}
"""Each approximation of a recipe, and its value where it is off."""

YOUNGER = frozenset({"trainer", "settled_share", "lora_rank", "lora_alpha", *EXACT})
"""Fields of a recipe that are younger than the first banks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a memory is made (METHOD section 1). Its id is part of a job's idempotency key."""

    parameterisation: str = "soft_prompt"
    objective: str = "grpo_majority"
    virtual_tokens: int = 20  # V
    rollouts: int = 8  # G
    steps: int = 10  # S
    max_new_tokens: int = 32  # T_max
    temperature: float = 0.5
    learning_rate: float = 5e-3
    beta: float = 0.0  # weight of KL_k3(policy || reference)
    clip_eps: float = 0.2
    max_grad_norm: float = 1.0
    kl_reference: str = "base"
    kv_heads: str = "mean"
    min_vote_share: float = 0.0  # the gate: below this final vote share a memory stays a candidate
    seed: int = 0
    trainer: str = "native"  # who ran the loop: this library, or "trl"
    skip_equal_rewards: bool = False  # approximation: a step whose rewards are all equal changes nothing
    stop_when_settled: int = 0  # approximation: stop after so many steps in a row at ``settled_share``; 0: never
    settled_share: float = 1.0  # the vote share from which a step counts as settled
    rollout_weights: str = "exact"  # approximation: "float16" or "int8" draw rollouts with rounded weights, on a CPU
    rollout_drafts: bool = False  # approximation: tokens guessed from earlier rollouts are read several at a time
    lora_rank: int = 16  # of each matrix of a `lora` memory
    lora_alpha: float = 16.0  # a `lora` memory adds alpha / rank times B A

    @property
    def id(self) -> str:
        """A digest of every field; one that is younger than the first banks counts when it is not its default."""
        values = asdict(self)
        for one in fields(self):
            if one.name in YOUNGER and values[one.name] == one.default:
                del values[one.name]
        return digest_of(values)

    @property
    def approximations(self) -> tuple[str, ...]:
        """Where it leaves the algorithm of the paper to save time; empty: the mathematics is exact."""
        return tuple(name for name, off in EXACT.items() if getattr(self, name) != off)

    @property
    def positions(self) -> int:
        """How many positions the memory takes before the question."""
        return self.virtual_tokens if self.parameterisation in ("soft_prompt", "prefix") else 0

    @property
    def lora_scale(self) -> float:
        return self.lora_alpha / self.lora_rank

    @property
    def offline(self) -> bool:
        """Whether it is for studies alone: made with what an agent never has, and never kept in a bank."""
        return self.objective == "grpo_ground_truth" or self.parameterisation == "full"

    @property
    def contradiction(self) -> str | None:
        """Which of its values make no sense together, in one sentence; None when all do."""
        if self.objective == "sft_greedy":
            for name, off in {"beta": 0.0, "min_vote_share": 0.0, **EXACT}.items():
                if (value := getattr(self, name)) != off:
                    return (
                        f"objective 'sft_greedy' has one completion, no votes and no KL term; {name} is {value!r}: "
                        "leave it out"
                    )
        if self.lora_rank < 1:
            return f"lora_rank is {self.lora_rank}: expected at least 1"
        if self.rollout_weights not in ("exact", "float16", "int8"):
            return f"rollout_weights is {self.rollout_weights!r}: expected 'exact', 'float16' or 'int8'"
        if self.rollout_weights != "exact" and self.parameterisation not in ("soft_prompt", "prefix"):
            return (
                f"rollout_weights {self.rollout_weights!r} are a copy of the layers that a memory of "
                f"parameterisation {self.parameterisation!r} changes: use rollout_weights 'exact'"
            )
        return None


# --- generation ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One generated text with what the decode step knew of it."""

    text: str
    token_ids: tuple[int, ...]  # with the end token when it was produced
    mean_logprob: float  # nats per token, under the distribution it was generated from at temperature 1
    self_certainty: float  # mean over tokens of KL(uniform || p), nats (arXiv 2502.18581)
    finished: bool  # ended by itself, not by the limit
    seconds: float  # wall time of the batch it ran in


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One of the two answers of a question."""

    text: str
    answer: str | None  # extracted; None when there is none
    tokens: int
    mean_logprob: float
    self_certainty: float
    finished: bool
    seconds: float
    memory_id: str | None = None
    score: float | None = None  # of the verifier; None when it was not asked


@dataclass(frozen=True, slots=True)
class Hit:
    """One retrieved memory; ``similarity``: cosine in [-1, 1]. Indexes leave ``namespace`` empty; banks fill it."""

    memory_id: str
    similarity: float
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one candidate; higher is better, ``detail`` explains it in plain values."""

    score: float
    detail: dict[str, Any] = field(default_factory=dict)


# --- learning -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled completion of one step."""

    step: int
    index: int
    seed: int
    text: str
    answer: str | None
    reward: float | None  # None: the reward failed, see ``failure``
    tokens: int
    finished: bool
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step of one memory. ``vote_share``: share of the G rollouts that gave the majority answer."""

    step: int
    majority_answer: str | None
    vote_share: float
    reward_mean: float
    loss: float
    kl: float
    grad_norm: float
    clip_fraction: float
    tokens: int
    finished_share: float
    seconds_rollout: float
    seconds_update: float
    # What tokens were worth that another sampler than the policy itself drew, before they were truncated; else None.
    ratio_mean: float | None = None
    ratio_max: float | None = None

    @property
    def seconds(self) -> float:
        return self.seconds_rollout + self.seconds_update


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryKeys:
    """Both retrieval keys, unit length. ``kv`` is None for a model whose attention projections are not known."""

    input: Vector  # (E,)
    kv: Vector | None  # (L * head width,)


# --- stored records -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRecord:
    """A stored, trained prompt and where it came from."""

    id: str
    namespace: str
    state: MemoryState
    pinned: bool
    reason: str | None  # why it is in this state
    question: str
    question_digest: str
    task: str
    episode_id: str
    job_id: str | None
    tensor_digest: str
    virtual_tokens: int
    width: int
    model: ModelFingerprint
    recipe: Recipe
    library_version: str
    format_version: int
    revision: int  # of the namespace when the row last changed
    created_at: datetime
    updated_at: datetime
    state_since: datetime
    valid_until: datetime | None = None
    subject: str | None = None
    origin: str = "local"
    content_digest: str = ""
    uses: int = 0
    fixed: int = 0
    broken: int = 0
    final_vote_share: float = 0.0
    review: Review | None = None  # None: nobody was asked, or it was changed in another way since


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """The experience a memory came from: question, rollouts, votes, curve."""

    id: str
    namespace: str
    question: str
    task: str
    majority_answer: str | None
    curve: tuple[StepRecord, ...]
    rollouts: tuple[Rollout, ...]
    seed: int
    seconds: float
    created_at: datetime

    @property
    def seconds_per_step(self) -> float:
        """Wall time of a step in the mean, its completions and its update; 0 without a curve."""
        return sum(step.seconds for step in self.curve) / max(1, len(self.curve))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One background job. ``fence`` grows with every claim; a write with an older fence is refused."""

    id: str
    namespace: str
    state: JobState
    question: str
    task: str
    priority: int  # higher first
    attempts: int
    max_attempts: int
    idempotency_key: str
    model_id: str
    recipe: Recipe
    progress: dict[str, Any]
    cancel_requested: bool
    reason: str | None
    memory_id: str | None
    owner: str | None
    fence: int
    lease_until: datetime | None
    run_after: datetime
    created_at: datetime
    updated_at: datetime
    subject: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UseRecord:
    """One retrieval of one memory: similarity, route and outcome."""

    id: str
    namespace: str
    memory_id: str
    question: str
    similarity: float
    key_kind: KeyKind
    route: Route
    reason: str | None
    answer: str | None
    memory_answer: str | None
    zero_shot_answer: str | None
    outcome: UseOutcome
    created_at: datetime
    memory_namespace: str = ""  # where the memory lives, if it is shared; empty: `namespace`
    subject: str | None = None  # whose question it was
    feedback: Feedback | None = None  # the user's last word on the answer
    feedback_answer: str | None = None  # the right one, where they gave it
    feedback_effect: Effect | None = None  # what that says of the memory; None: nothing
    feedback_at: datetime | None = None
    tier: Tier | None = None  # None: of before there were tiers
    review: Review | None = None  # of the memory's answer in place of the plain one; None: nobody was asked
    review_note: str | None = None  # why a person chose as they did


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How likely a memory helps rather than hurts, by similarity and utility: one logistic curve of a namespace.

    p = 1 / (1 + exp(-(intercept + of_similarity * similarity + of_utility * utility))); both slopes are at least 0.
    ``uses``: on how many uses that told something it was fitted; ``helped``, ``hurt``: what they weighed together.
    """

    namespace: str
    kind: KeyKind
    model_id: str
    intercept: float
    of_similarity: float
    of_utility: float
    uses: int
    helped: float
    hurt: float
    fitted_at: datetime

    def chance(self, similarity: float, utility: float) -> float:
        """That the memory's answer is the better one where the two differ in worth, in (0, 1)."""
        logit = self.intercept + self.of_similarity * similarity + self.of_utility * utility
        return 1.0 / (1.0 + math.exp(-max(-700.0, min(700.0, logit))))

    def threshold(self, min_chance: float, utility: float = 0.0) -> float | None:
        """The similarity from which the chance is ``min_chance``; None where similarity says nothing."""
        if self.of_similarity == 0:
            return None
        wanted = math.log(min_chance / (1.0 - min_chance))
        return (wanted - self.intercept - self.of_utility * utility) / self.of_similarity


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """One link of a namespace's chain; ``revision`` orders it without gaps. ``note`` is free text, and erasable."""

    namespace: str
    revision: int
    kind: EventKind
    memory_id: str | None
    actor: str
    detail: dict[str, Any]
    created_at: datetime
    digest: str
    note: str | None = None


def idempotency_key(namespace: str, question: str, model_id: str, recipe_id: str) -> str:
    """Same experience, same key: a replayed node never trains twice."""
    return digest_of([namespace, question_digest(question), model_id, recipe_id])
