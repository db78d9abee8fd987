"""What stands in the JSON of a pack: the manifest, one line for each memory, the signature.

Strict: an unknown or missing key, another type, a number that is not finite or out of range, a key given twice,
too deep a nesting are one ``InputError``. Knows nothing of ZIP files, disks or banks. docs/packs.md describes it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from elm_agent.errors import InputError
from elm_agent.records import MemoryState, ModelFingerprint, Recipe, Vector, digest_of

PACK_FORMAT = "elm-agent pack"
PACK_VERSION = 1
SIGNED = b"elm-agent pack 1\n"  # stands before what is signed, so that no other signature of the key fits a pack
MAX_MEMORIES = 100_000
MAX_DEPTH = 6  # ours go down to 5: line, episode, curve, step, value
MAX_VIRTUAL_TOKENS = 4_096
MAX_WIDTH = 65_536
MAX_RANK = 1_024
MAX_KEY_WIDTH = 1 << 20

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Namespace = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
Word = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,32}$")]
Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,500}$")]
Small = Annotated[int, Field(ge=0, lt=2**31)]
Long = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
_First, _Last = datetime(1970, 1, 2, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
Moment = Annotated[AwareDatetime, Field(ge=_First, le=_Last)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


_Model = TypeVar("_Model", bound=_Strict)


class ModelLine(_Strict):
    """``ModelFingerprint``: what the memories were made for."""

    name: Name
    weights: Name
    tokenizer: Name
    template: Name
    width: int = Field(ge=1, le=MAX_WIDTH)

    def fingerprint(self) -> ModelFingerprint:
        return ModelFingerprint(**self.model_dump())


class RecipeLine(_Strict):
    """``Recipe``: how a memory was made."""

    parameterisation: Word
    objective: Word
    virtual_tokens: int = Field(ge=1, le=MAX_VIRTUAL_TOKENS)
    rollouts: Small
    steps: Small
    max_new_tokens: Small
    temperature: NotNegative
    learning_rate: NotNegative
    beta: NotNegative
    clip_eps: NotNegative
    max_grad_norm: NotNegative
    kl_reference: Word
    kv_heads: Word
    min_vote_share: Share
    seed: Long
    trainer: Word = "native"  # packs of before do not say; nor these:
    skip_equal_rewards: bool = False
    stop_when_settled: Small = 0
    settled_share: Share = 1.0
    rollout_weights: Word = "exact"
    rollout_drafts: bool = False
    lora_rank: int = Field(16, ge=1, le=MAX_RANK)
    lora_alpha: NotNegative = 16.0

    def recipe(self) -> Recipe:
        return Recipe(**self.model_dump())


class StepLine(_Strict):
    """``StepRecord``: one optimizer step."""

    step: Small
    majority_answer: str | None
    vote_share: Share
    reward_mean: float
    loss: float
    kl: float
    grad_norm: NotNegative
    clip_fraction: Share
    tokens: Small
    finished_share: Share
    seconds_rollout: NotNegative
    seconds_update: NotNegative
    ratio_mean: NotNegative | None = None  # packs of before do not say
    ratio_max: NotNegative | None = None


class RolloutLine(_Strict):
    """``Rollout``: one sampled completion."""

    step: Small
    index: Small
    seed: Long
    text: str
    answer: str | None
    reward: float | None
    tokens: Small
    finished: bool
    failure: str | None


class EpisodeLine(_Strict):
    """``Episode`` without what the memory's line already says."""

    id: Id
    majority_answer: str | None
    curve: tuple[StepLine, ...] = Field(max_length=10_000)
    rollouts: tuple[RolloutLine, ...] = Field(max_length=1_000_000)
    seed: Long
    seconds: NotNegative
    created_at: Moment


class KeysLine(_Strict):
    """Both retrieval keys: little-endian float32 in base64."""

    input: str
    kv: str | None


class MemoryLine(_Strict):
    """One whole memory. ``question`` and ``episode`` are null in a pack that was exported without episodes."""

    id: Id
    question: str | None = Field(min_length=1)
    question_digest: Digest
    task: Word
    state: MemoryState
    origin: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,500}$")]
    created_at: Moment
    valid_until: Moment | None
    virtual_tokens: int = Field(ge=0, le=MAX_VIRTUAL_TOKENS)  # 0: the memory takes no positions
    width: int = Field(ge=1, le=MAX_WIDTH)
    recipe: RecipeLine
    library_version: Name
    format_version: Small
    final_vote_share: Share
    keys: KeysLine
    episode: EpisodeLine | None
    tensor: str = Field(pattern=r"^[0-9]{6}$", description="how its tensors' names begin: its place in the pack")


class PartLine(_Strict):
    """One part of the pack."""

    sha256: Digest
    bytes: int = Field(ge=0, lt=2**31)


class PartsLine(_Strict):
    """The parts that the manifest vouches for."""

    memories: PartLine
    tensors: PartLine


class ItemLine(_Strict):
    """Digests of one memory: of its line without the line's end, and of its tensor's bytes."""

    line: Digest
    tensor: Digest


class Manifest(_Strict):
    """What the pack says of itself."""

    format: Literal["elm-agent pack"]
    format_version: Literal[1]
    pack_id: Digest
    library_version: Name
    created_at: Moment
    model: ModelLine
    namespace: Namespace
    episodes: bool
    parts: PartsLine
    memories: tuple[ItemLine, ...] = Field(max_length=MAX_MEMORIES)


class SignatureLine(_Strict):
    """An Ed25519 signature over ``SIGNED`` and the bytes of the manifest, and the public key that it fits."""

    public_key: str = Field(pattern=r"^ed25519:[A-Za-z0-9+/]{43}=$")
    signature: str = Field(pattern=r"^[A-Za-z0-9+/]{86}==$")


def pack_id_of(*, model: ModelFingerprint, namespace: str, parts: PartsLine) -> str:
    """The pack's identity: the same memories of the same namespace and model have the same one."""
    content = {"memories": parts.memories.sha256, "tensors": parts.tensors.sha256}
    return digest_of({"format": [PACK_FORMAT, PACK_VERSION], "model": model.id, "namespace": namespace, **content})


def tensor_name(place: int, name: str = "prompt") -> str:
    """Names sort as the memories do, so the tensors of a pack lie in the order of its lines.

    ``name``: of one of a memory's tensors. That of a soft prompt is not said, as there is no other.
    """
    return f"{place:06d}" if name == "prompt" else f"{place:06d}.{name}"


def digest_of_bytes(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse(kind: type[_Model], data: bytes, what: str) -> _Model:
    """``data`` as a ``kind``, or ``InputError`` in one sentence that names ``what``."""
    check_json(data, what)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first, *more = error.errors(include_url=False)
        where = ".".join(str(part)[:40] for part in first["loc"]) or "it"
        others = f" (and {len(more)} more)" if more else ""
        refuse(what, f"{where[:120]!r} is {str(first.get('input'))[:60]!r}: {first['msg']}{others}")


def lined(kind: type[_Model], what: str, **values: Any) -> _Model:
    """A line of what a bank holds, or ``InputError`` for what no pack may hold."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{what} cannot be exported: its {where} is {str(first.get('input'))[:60]!r}; {first['msg']}"
        ) from None


def check_json(data: bytes, what: str, *, max_depth: int = MAX_DEPTH) -> Any:
    """The plain value of ``data``: one JSON document, no key twice, no NaN, no nesting beyond ``max_depth``."""
    if (depth := _depth(data)) > max_depth:
        refuse(what, f"nested {depth} deep, expected at most {max_depth}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            refuse(what, "a key stands twice in one object")
        return made

    try:
        text = data.decode("utf-8")
        return json.loads(text, object_pairs_hook=once, parse_constant=lambda word: refuse(what, f"got {word}"))
    except InputError:
        raise
    except ValueError as error:  # not UTF-8, not JSON, or an integer of thousands of digits
        refuse(what, f"not JSON in UTF-8 ({str(error)[:80]})")


def _depth(data: bytes) -> int:
    """How deep brackets nest outside strings."""
    deepest = depth = 0
    for byte in re.findall(rb"[\[\]{}]", _STRING.sub(b"", data)):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def refuse(what: str, problem: str) -> NoReturn:
    """The one way a pack is refused."""
    raise InputError(
        f"{what} cannot be read: {problem}; it was altered or damaged, or is no pack of elm_agent: fetch or export "
        "it again. Nothing was imported"
    )


def encode_key(vector: Vector) -> str:
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")


def decode_key(text: str, what: str) -> Vector:
    """A finite float32 vector of unit length, shape (width,)."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        refuse(what, "a key is not base64")
    if len(data) % 4 or not 4 <= len(data) <= 4 * MAX_KEY_WIDTH:
        refuse(what, f"a key has {len(data)} bytes, expected 4 for each of 1 to {MAX_KEY_WIDTH} numbers")
    vector: Vector = np.frombuffer(data, dtype="<f4").astype(np.float32)
    finite = bool(np.isfinite(vector).all())
    length = float(np.linalg.norm(vector.astype(np.float64))) if finite else float("nan")
    if not abs(length - 1) < 1e-3:
        refuse(what, f"a key has length {length:.6g}, expected 1")
    return vector
