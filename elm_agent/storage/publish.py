"""One new memory, from a lease and what the trainer returned: checked, its tensor stored, then all its rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from elm_agent.errors import InputError, ModelMismatch
from elm_agent.protocols import Observer, TensorStore, Trained
from elm_agent.records import (
    FORMAT_VERSION,
    Episode,
    EventKind,
    KeyKind,
    MemoryKeys,
    MemoryState,
    ModelFingerprint,
    Recipe,
    Review,
    Vector,
    new_id,
    question_digest,
)
from elm_agent.storage.indexes.exact import check_vector
from elm_agent.storage.keeping import ATTEMPTS, Stored, busy, stands, store
from elm_agent.storage.ledger.chain import genesis
from elm_agent.storage.ledger.changes import Change, lock_namespace
from elm_agent.storage.ledger.proofs import record_proof
from elm_agent.storage.queue.jobs import Lease, fenced, refuse_offline
from elm_agent.storage.queue.states import finish
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.rows import episode_row, fingerprint_of, pack, sealed
from elm_agent.storage.sql.schema import KeyRow, MemoryRow, NamespaceRow
from elm_agent.storage.vault.base import Vault
from elm_agent.storage.vault.guard import refuse_readable

if TYPE_CHECKING:
    from elm_agent.adapters import Kept, Weights


@dataclass(frozen=True, slots=True)
class Publication:
    """What a worker wants to publish; see ``Bank.publish``."""

    lease: Lease
    trained: Trained
    task: str
    model: ModelFingerprint
    recipe: Recipe
    state: MemoryState
    reason: str | None
    admission: Mapping[str, Any] = field(default_factory=dict)
    review: Review | None = None

    @property
    def namespace(self) -> str:
        return self.lease.job.namespace


def publish(database: Database, tensors: TensorStore, vault: Vault, made: Publication, tell: Observer) -> MemoryRow:
    """See ``Bank.publish``."""
    from elm_agent.adapters import to_bytes  # torch enters late: reading commands need none

    refuse_offline(made.recipe)
    check_trained(made.trained, made.state)
    check_review(made.review, made.state)
    plain = to_bytes(check_kept(made.trained.prompt, made.recipe, made.model))
    with database.read() as session:
        refuse_readable(session, vault, made.namespace)
    sealed_bytes = vault.seal_bytes(made.namespace, plain)
    for _ in range(ATTEMPTS):
        # 1. the tensor is durable before anything names it
        stored = store(database, tensors, made.namespace, [sealed_bytes], tell)
        # 2. one transaction makes it a memory
        memory = _write(database, vault, made, plain, stored, tell)
        if memory is not None:
            return memory
    raise busy(made.namespace)


def _write(
    database: Database, vault: Vault, made: Publication, plain: bytes, stored: Stored, tell: Observer
) -> MemoryRow | None:
    """The transaction; None, and nothing is written, when the tensor may be gone."""
    lease, namespace, (digest,) = made.lease, made.namespace, stored.digests
    with database.write() as session:
        now = database.now(session)
        job = fenced(session, lease)
        owner = lock_namespace(session, namespace)
        refuse_readable(session, vault, namespace)
        if not stands(session, namespace, stored, now):
            return None
        check_model(owner, made.model)
        episode = new_episode(lease, made.trained, task=made.task, now=now)
        session.add(episode_row(episode, vault))
        session.flush()
        memory = new_memory(made, episode, digest, content_digest(vault, namespace, plain), vault)
        session.add(memory)
        session.flush()
        keys = new_keys(session, memory, made.trained.keys)
        session.add_all(keys)
        change = Change(session, owner, lease.owner, now, vault)
        vectors = [(key.kind, key.vector) for key in keys]
        proof = record_proof(episode, prompt=plain, keys=vectors, model=memory.model, recipe=memory.recipe)
        size = {"parameters": made.trained.parameters, "bytes": made.trained.nbytes}
        detail = {"job_id": lease.job.id, "tensor_digest": digest} | size
        change.note(EventKind.CREATED, memory, detail, text=proof)
        gated = {"state": made.state.value, "vote_share": made.trained.final.vote_share}
        change.note(EventKind.GATED, memory, gated | dict(made.admission), text=made.reason)
        if made.state == MemoryState.ACTIVE:
            change.note(EventKind.ACTIVATED, memory, reindex=True)
        elif made.state == MemoryState.QUARANTINED:
            change.note(EventKind.QUARANTINED, memory, text=made.reason)
        finish(job, memory.id, now)
        session.flush()
        tell("publish.before_commit", {"memory_id": memory.id})
    return memory


def namespace_values(namespace: str, model: ModelFingerprint, actor: str, now: datetime) -> dict[str, Any]:
    """The columns of a new ``NamespaceRow``."""
    return {
        "name": namespace,
        "model_name": model.name,
        "model_weights": model.weights,
        "model_tokenizer": model.tokenizer,
        "model_template": model.template,
        "model_width": model.width,
        "model_id": model.id,
        "revision": 0,
        "head": genesis(namespace),
        "outbox_floor": 0,
        "created_by": actor,
        "created_at": now,
    }


def check_model(row: NamespaceRow, model: ModelFingerprint) -> None:
    """Raise ``ModelMismatch`` unless the namespace is made for ``model``; the model's name does not count."""
    made_for = fingerprint_of(row)
    if made_for.id == model.id:
        return
    parts = ("weights", "tokenizer", "template", "width")
    differ = [part for part in parts if getattr(made_for, part) != getattr(model, part)]
    raise ModelMismatch(
        f"namespace {row.name!r} was made for model {made_for.name!r}, got {model.name!r} (they differ in "
        f"{', '.join(differ)}): memories fit one model only; use that model, or another namespace for this one"
    )


def check_trained(trained: Trained, state: MemoryState) -> None:
    """Raise ``InputError`` for what could never be stored or found again. Before anything is written."""
    if state not in (MemoryState.CANDIDATE, MemoryState.ACTIVE, MemoryState.QUARANTINED):
        raise InputError(f"a new memory is candidate, active or quarantined; got {state}")
    if not trained.curve:
        raise InputError("a memory without a curve says nothing of how it was made: expected at least one step")
    for _, vector in by_kind(trained.keys):
        check_vector(vector)


def check_review(review: Review | None, state: MemoryState) -> None:
    """Raise ``InputError`` unless it is a candidate that waits for a person, or nobody is asked."""
    if review is not None and (review, state) != (Review.WAITING, MemoryState.CANDIDATE):
        raise InputError(f"a new memory that waits for a review is a candidate; got {review} and {state}")


def check_kept(memory: Kept | Weights, recipe: Recipe, model: ModelFingerprint) -> Kept:
    """The memory itself, or an ``InputError`` when it is not of its recipe's kind or not of its model's width."""
    from elm_agent.adapters import Weights

    if isinstance(memory, Weights) or memory.parameterisation != recipe.parameterisation:
        raise InputError(
            f"the recipe says parameterisation {recipe.parameterisation!r}, the memory is of kind "
            f"{memory.parameterisation!r}: expected the recipe that it was trained with"
        )
    if memory.width not in (None, model.width):
        raise InputError(f"the prompt has width {memory.width}, model {model.name!r} has {model.width}")
    return memory


def content_digest(vault: Vault, namespace: str, data: bytes) -> str:
    """A name for a prompt's own bytes that equal prompts of the namespace share."""
    return vault.blind(namespace, plain_digest(data))


def plain_digest(data: bytes) -> str:
    """The same name where nothing is encrypted."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def by_kind(keys: MemoryKeys) -> list[tuple[KeyKind, Vector]]:
    """The keys that a memory has."""
    pairs = [(KeyKind.INPUT, keys.input), (KeyKind.KV, keys.kv)]
    return [(kind, vector) for kind, vector in pairs if vector is not None]


def new_episode(lease: Lease, trained: Trained, *, task: str, now: datetime) -> Episode:
    return Episode(
        id=new_id("ep"),
        namespace=lease.job.namespace,
        question=lease.job.question,
        task=task,
        majority_answer=trained.final.majority_answer,
        curve=trained.curve,
        rollouts=trained.rollouts,
        seed=trained.seed,
        seconds=trained.seconds,
        created_at=now,
    )


def new_memory(made: Publication, episode: Episode, tensor: str, content: str, vault: Vault) -> MemoryRow:
    """The row without its revision, which ``Change.note`` gives it. ``tensor``, ``content``: the digests."""
    lease, trained = made.lease, made.trained
    return MemoryRow(
        namespace=episode.namespace,
        id=new_id("mem"),
        state=made.state.value,
        pinned=False,
        reason=sealed(vault, episode.namespace, made.reason),
        review=made.review,
        question=vault.seal(episode.namespace, episode.question),
        question_digest=vault.blind(episode.namespace, question_digest(episode.question)),
        subject=lease.job.subject,
        origin="local",
        task=episode.task,
        episode_id=episode.id,
        job_id=lease.job.id,
        tensor_digest=tensor,
        content_digest=content,
        virtual_tokens=trained.prompt.virtual_tokens,
        width=made.model.width,
        model=asdict(made.model),
        recipe=asdict(made.recipe),
        library_version=version("elm-agent"),
        format_version=FORMAT_VERSION,
        final_vote_share=trained.final.vote_share,
        revision=0,
        state_since=episode.created_at,
        created_at=episode.created_at,
        updated_at=episode.created_at,
    )


def new_keys(session: Session, memory: MemoryRow, keys: MemoryKeys) -> list[KeyRow]:
    """The key rows. Raises ``InputError`` if the namespace's keys of that kind have another width."""
    rows = []
    for kind, vector in by_kind(keys):
        check_width(memory.namespace, kind, key_width(session, memory.namespace, kind), len(vector))
        row = KeyRow(
            namespace=memory.namespace, kind=kind.value, memory_id=memory.id, width=len(vector), vector=pack(vector)
        )
        rows.append(row)
    return rows


def key_width(session: Session, namespace: str, kind: KeyKind) -> int | None:
    """How wide the namespace's keys of that kind are; None while it has none."""
    same = select(KeyRow.width).where(KeyRow.namespace == namespace, KeyRow.kind == kind.value)
    return session.scalar(same.limit(1))


def check_width(namespace: str, kind: KeyKind, width: int | None, got: int) -> None:
    """Raise ``InputError`` unless a key of width ``got`` fits the others."""
    if width not in (None, got):
        raise InputError(
            f"the {kind} keys of namespace {namespace!r} have width {width}, got {got}: keep `learning.kv_heads` as "
            "it was, or use another namespace"
        )
