"""Whole memories that no job made, many in one transaction: what an import, a merger and a simulation write.

A prompt that the namespace already has is not taken in again: its content digest is looked up while the namespace's
row is held, so two imports of one pack at once store each memory once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from elm_agent.errors import InputError
from elm_agent.protocols import Observer, TensorStore
from elm_agent.records import (
    FORMAT_VERSION,
    Episode,
    EventKind,
    KeyKind,
    MemoryKeys,
    MemoryState,
    ModelFingerprint,
    Recipe,
    Rollout,
    StepRecord,
    new_id,
    question_digest,
    utcnow,
)
from elm_agent.storage import publish
from elm_agent.storage.indexes.exact import check_vector
from elm_agent.storage.keeping import ATTEMPTS, Stored, busy, stands, store
from elm_agent.storage.ledger.changes import Change, changing
from elm_agent.storage.ledger.proofs import horizon, record_proof
from elm_agent.storage.queue.jobs import refuse_offline
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.paging import some
from elm_agent.storage.sql.rows import pack, sealed, sealed_json
from elm_agent.storage.sql.schema import Base, EpisodeRow, EventRow, KeyRow, MemoryRow, OutboxRow
from elm_agent.storage.tensors.names import digest_of_bytes
from elm_agent.storage.vault.base import Vault
from elm_agent.storage.vault.guard import refuse_readable

if TYPE_CHECKING:
    from elm_agent.adapters import Kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """One memory to take in. ``origin``: where it comes from, kept as its level of trust."""

    question: str
    task: str
    prompt: Kept
    keys: MemoryKeys
    model: ModelFingerprint
    recipe: Recipe
    origin: str
    state: MemoryState = MemoryState.CANDIDATE
    final_vote_share: float = 0.0
    subject: str | None = None
    valid_until: datetime | None = None
    question_digest: str | None = None  # where ``question`` is not the text of the question itself
    library_version: str = field(default_factory=lambda: version("elm-agent"))
    majority_answer: str | None = None
    curve: tuple[StepRecord, ...] = ()
    rollouts: tuple[Rollout, ...] = ()
    seed: int = 0
    seconds: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)  # of the ledger's event: ids and digests only
    event: EventKind = EventKind.IMPORTED  # or CREATED, where it was made here


@dataclass(frozen=True, slots=True)
class _Wanted:
    item: Adopted
    plain: bytes  # the prompt's own
    content: str  # their digest, which equal prompts of the namespace share


_New = tuple[str, Adopted, str, str, bytes]
"""(memory id, item, content digest, tensor digest, the prompt's bytes)"""

Then = Callable[[Change, Sequence[tuple[str, bool]]], None]
"""Called within the transaction, with (memory id, whether it is new) of each item, before it is committed."""


def adopt(
    database: Database,
    tensors: TensorStore,
    vault: Vault,
    namespace: str,
    items: Sequence[Adopted],
    *,
    actor: str,
    tell: Observer,
    then: Then | None = None,
) -> list[tuple[str, bool]]:
    """See ``Bank.adopt``. ``tell`` hears "adopt.tensors", "adopt.before_commit" and "adopt.committed"."""
    from elm_agent.adapters import to_bytes  # torch enters late: reading commands need none

    for item in items:
        _check(item)
    wanted = []
    for item in items:
        data = to_bytes(item.prompt)
        wanted.append(_Wanted(item, data, publish.content_digest(vault, namespace, data)))
    sealed_bytes: dict[str, bytes] = {}  # by content: the same prompt twice is stored once
    for _ in range(ATTEMPTS):
        with database.read() as session:
            refuse_readable(session, vault, namespace)
            known = _known(session, namespace, wanted)
        # 1. tensors are durable before anything names them; what is known keeps the tensor that it has
        for one in wanted:
            if one.content not in known and one.content not in sealed_bytes:
                sealed_bytes[one.content] = vault.seal_bytes(namespace, one.plain)
        stored = store(database, tensors, namespace, list(sealed_bytes.values()))
        tell("adopt.tensors", {"namespace": namespace, "memories": len(items)})
        # 2. one transaction
        results = _write(database, vault, namespace, wanted, sealed_bytes, stored, actor, tell, then)
        if results is not None:
            tell("adopt.committed", {"namespace": namespace, "memories": sum(new for _, new in results)})
            return results
    raise busy(namespace)


def _write(
    database: Database,
    vault: Vault,
    namespace: str,
    wanted: Sequence[_Wanted],
    sealed_bytes: Mapping[str, bytes],
    stored: Stored,
    actor: str,
    tell: Observer,
    then: Then | None,
) -> list[tuple[str, bool]] | None:
    """The transaction; None, and nothing is written, when a tensor may be gone or a known memory is."""
    digests = {content: digest_of_bytes(data) for content, data in sealed_bytes.items()}
    with changing(database, namespace, actor=actor, vault=vault) as change:
        for one in wanted:
            publish.check_model(change.namespace, one.item.model)
        ids = _known(change.session, namespace, wanted)
        gone = any(one.content not in ids and one.content not in digests for one in wanted)
        if gone or not stands(change.session, namespace, stored, change.now):
            return None
        new: list[_New] = []
        results: list[tuple[str, bool]] = []
        for one in wanted:
            is_new = one.content not in ids
            if is_new:
                ids[one.content] = new_id("mem")
                new.append((ids[one.content], one.item, one.content, digests[one.content], one.plain))
            results.append((ids[one.content], is_new))
        if new:
            _insert(change, new)
        if then is not None:
            then(change, results)
        tell("adopt.before_commit", {"namespace": namespace, "memories": len(new)})
    return results


def _check(item: Adopted) -> None:
    refuse_offline(item.recipe)
    if item.state not in (MemoryState.CANDIDATE, MemoryState.ACTIVE):
        raise InputError(f"an adopted memory is candidate or active; got {item.state}")
    publish.check_kept(item.prompt, item.recipe, item.model)
    for _, vector in publish.by_kind(item.keys):
        check_vector(vector)


def _known(session: Session, namespace: str, wanted: Sequence[_Wanted]) -> dict[str, str]:
    """Memory ids by content digest, of those that the namespace has.

    What was stored before encryption was switched on bears the plain digest.
    """
    names = {one.content: publish.plain_digest(one.plain) for one in wanted}
    found: dict[str, str] = {}
    for digests in some({*names, *names.values()}):
        query = select(MemoryRow.content_digest, MemoryRow.id).where(
            MemoryRow.namespace == namespace, MemoryRow.content_digest.in_(digests)
        )
        found |= dict(session.execute(query.order_by(MemoryRow.id.desc())).tuples().all())
    return {name: found.get(name) or found[plain] for name, plain in names.items() if name in found or plain in found}


def _insert(change: Change, new: Sequence[_New]) -> None:
    """Rows go in table by table, past the ORM: several times quicker than one by one."""
    from elm_agent.adapters import bytes_of, numbers_of

    session, namespace, vault, now = change.session, change.namespace.name, change.vault, change.now
    widths = {kind: publish.key_width(session, namespace, kind) for kind in KeyKind}
    models, recipes = ({part: asdict(part) for part in parts} for parts in _parts(new))
    events, memories, episodes, keys, outbox = [], [], [], [], []
    for memory_id, item, content, digest, plain in new:
        episode_id = new_id("ep")
        detail = {"tensor_digest": digest, "state": item.state.value, "origin": item.origin} | item.detail
        detail |= {"valid_until": horizon(item.valid_until)}
        detail |= {"parameters": numbers_of(item.prompt), "bytes": bytes_of(item.prompt)}
        proof = _proof(namespace, item, plain, models[item.model], recipes[item.recipe])
        events.append(change.linked(item.event, memory_id, detail, text=proof))
        revision = change.namespace.revision
        question = vault.seal(namespace, item.question)
        at = {"namespace": namespace, "created_at": now}
        episodes.append(
            at
            | {
                "id": episode_id,
                "question": question,
                "task": item.task,
                "majority_answer": sealed(vault, namespace, item.majority_answer),
                "curve": sealed_json(vault, namespace, [_flat(step) for step in item.curve]),
                "rollouts": sealed_json(vault, namespace, [_flat(rollout) for rollout in item.rollouts]),
                "seed": item.seed,
                "seconds": item.seconds,
            }
        )
        memories.append(
            at
            | {
                "id": memory_id,
                "state": item.state.value,
                "pinned": False,
                "reason": None,
                "question": question,
                "question_digest": vault.blind(namespace, item.question_digest or question_digest(item.question)),
                "subject": None if item.subject is None else vault.blind(namespace, item.subject),
                "origin": item.origin,
                "task": item.task,
                "episode_id": episode_id,
                "job_id": None,
                "tensor_digest": digest,
                "content_digest": content,
                "virtual_tokens": item.prompt.virtual_tokens,
                "width": item.model.width,
                "model": models[item.model],
                "recipe": recipes[item.recipe],
                "library_version": item.library_version,
                "format_version": FORMAT_VERSION,
                "final_vote_share": item.final_vote_share,
                "revision": revision,
                "valid_until": item.valid_until,
                "state_since": now,
                "updated_at": now,
            }
        )
        for n, (kind, vector) in enumerate(sorted(publish.by_kind(item.keys))):
            width = widths[kind] = widths.get(kind) or len(vector)
            publish.check_width(namespace, kind, width, len(vector))
            key = {"namespace": namespace, "kind": kind.value, "memory_id": memory_id}
            keys.append(key | {"width": len(vector), "vector": pack(vector)})
            if item.state == MemoryState.ACTIVE:
                outbox.append(key | {"revision": revision, "n": n, "present": True})
    session.flush()
    rows = ((EventRow, events), (EpisodeRow, episodes), (MemoryRow, memories), (KeyRow, keys), (OutboxRow, outbox))
    for kind_of_row, values in rows:
        if values:
            session.execute(insert(Base.metadata.tables[kind_of_row.__tablename__]), values)


def _proof(namespace: str, item: Adopted, plain: bytes, model: dict[str, Any], recipe: dict[str, Any]) -> str:
    """What the event binds the memory to; see ``proofs``."""
    episode = Episode(
        id="",
        namespace=namespace,
        question=item.question,
        task=item.task,
        majority_answer=item.majority_answer,
        curve=item.curve,
        rollouts=item.rollouts,
        seed=item.seed,
        seconds=item.seconds,
        created_at=utcnow(),
    )
    keys = [(kind.value, pack(vector)) for kind, vector in publish.by_kind(item.keys)]
    return record_proof(episode, prompt=plain, keys=keys, model=model, recipe=recipe)


def _parts(new: Sequence[_New]) -> tuple[set[ModelFingerprint], set[Recipe]]:
    """The few models and recipes of many memories."""
    return {item.model for _, item, *_ in new}, {item.recipe for _, item, *_ in new}


def _flat(record: StepRecord | Rollout) -> dict[str, Any]:
    """``asdict`` for a record of plain values, without its deep copies."""
    return {name: getattr(record, name) for name in record.__slots__}
