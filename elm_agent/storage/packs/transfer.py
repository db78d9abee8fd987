"""Packs of a bank: memories that leave it in one file, and memories that come in from one.

What comes in is a candidate, and its origin, kept with it, says how far it may be trusted. A pack is read to its end
before anything of it is written; what is imported twice, at once or after a kill, is there once. How a pack looks is
the business of ``packfile`` and ``packwrite``; how memories are stored, of ``adopt``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from sqlalchemy import select

from elm_agent.errors import InputError, NotFound
from elm_agent.protocols import Observer
from elm_agent.records import EventKind, MemoryState, ModelFingerprint, Rollout, StepRecord, question_digest
from elm_agent.storage import publish
from elm_agent.storage.adopt import Adopted
from elm_agent.storage.ledger.changes import changing, find_memory
from elm_agent.storage.ledger.signing import BadSignature, PublicKey, SigningKey
from elm_agent.storage.packs.lines import (
    SIGNED,
    EpisodeLine,
    KeysLine,
    Manifest,
    MemoryLine,
    RecipeLine,
    RolloutLine,
    SignatureLine,
    StepLine,
    encode_key,
    lined,
    tensor_name,
)
from elm_agent.storage.packs.reading import PackedMemory, PackReader, Progress
from elm_agent.storage.packs.writing import check_target, write_pack
from elm_agent.storage.sql.rows import fingerprint_of
from elm_agent.storage.sql.schema import ExportRow, MemoryRow, NamespaceRow
from elm_agent.storage.vault.base import PlainVault

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank

_Item = TypeVar("_Item")

BATCH = 100  # memories of one transaction: 29 MB of soft prompts of a 7B model
BATCH_BYTES = 2**26  # of their tensors, where these are larger
NO_QUESTION = "(the question was not exported)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What went into a pack. ``signed_by``: fingerprint of the public key."""

    pack_id: str
    path: Path
    memories: int
    bytes: int
    episodes: bool
    signed_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What a pack holds and what came of it: ``new`` memories that the bank did not have, ``known`` ones it had.

    ``ids``: id in the pack and id here, of the new ones; empty after a dry run.
    """

    pack_id: str
    model: ModelFingerprint
    exported_from: str
    origin: str
    signed_by: str | None
    episodes: bool
    memories: int
    new: int
    known: int
    dry_run: bool
    ids: tuple[tuple[str, str], ...] = ()


# --- out ----------------------------------------------------------------------------------------------------


def export_pack(
    bank: Bank,
    namespace: str,
    path: Path,
    *,
    memory_ids: Sequence[str] = (),
    state: MemoryState | None = MemoryState.ACTIVE,
    episodes: bool = True,
    key: Path | None = None,
    force: bool = False,
    actor: str,
    progress: Progress | None = None,
) -> ExportReport:
    """Write memories of a namespace into a pack, readable by whoever has the file, and note where they went.

    Args:
        memory_ids: these, whatever their state; none: all in ``state`` (None: in any), oldest first.
        episodes: with questions, rollouts and curves, or only what is needed to use the memories.
        key: file of the private key to sign with.

    Raises:
        NotFound: an unknown namespace or id. InputError: nothing to export, or a file that cannot be written.
        TensorMissing, TensorCorrupt: of one of the memories. No file is left then.
    """
    check_target(path, force=force)
    signing = SigningKey.read(key) if key is not None else None
    model, ids = _chosen(bank, namespace, memory_ids, state)

    def sign(data: bytes) -> SignatureLine:
        assert signing is not None
        return SignatureLine(public_key=str(signing.public), signature=signing.sign(data))

    def tensors(memory_id: str) -> dict[str, np.ndarray]:
        found = sorted(bank.prompt(namespace, memory_id).tensors.items())
        return {name: np.asarray(tensor, dtype="<f4") for name, tensor in found}

    def numbers(memory_id: str) -> bytes:
        return b"".join(array.tobytes() for array in tensors(memory_id).values())

    def shapes(memory_id: str) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in tensors(memory_id).items()}

    manifest = write_pack(
        path,
        (_line(bank, namespace, memory_id, place, episodes=episodes) for place, memory_id in enumerate(ids)),
        numbers,
        model=model,
        namespace=namespace,
        episodes=episodes,
        shapes=shapes,
        sign=sign if signing else None,
        before=lambda manifest: _note_export(bank, namespace, manifest, ids, path, actor=actor),
        force=force,
        progress=progress,
    )
    return ExportReport(
        pack_id=manifest.pack_id,
        path=path,
        memories=len(ids),
        bytes=path.stat().st_size,
        episodes=episodes,
        signed_by=signing.public.fingerprint if signing else None,
    )


def _chosen(
    bank: Bank, namespace: str, memory_ids: Sequence[str], state: MemoryState | None
) -> tuple[ModelFingerprint, list[str]]:
    """The namespace's model and the ids to export, each once."""
    with bank.database.read() as session:
        row = session.get(NamespaceRow, namespace)
        if row is None:
            raise NotFound(f"namespace {namespace[:100]!r} is not in this bank: bind it to a model first")
        if memory_ids:
            ids = [find_memory(session, namespace, memory_id).id for memory_id in dict.fromkeys(memory_ids)]
        else:
            query = select(MemoryRow.id).where(MemoryRow.namespace == namespace)
            if state is not None:
                query = query.where(MemoryRow.state == state.value)
            ids = list(session.scalars(query.order_by(MemoryRow.created_at, MemoryRow.id)))
        if not ids:
            which = f"{state} memories" if state is not None else "memories"
            raise InputError(f"namespace {namespace!r} has no {which} to export: `elm-agent memories list` shows all")
        return fingerprint_of(row), ids


def _line(bank: Bank, namespace: str, memory_id: str, place: int, *, episodes: bool) -> MemoryLine:
    memory, keys = bank.memory(namespace, memory_id), bank.keys(namespace, memory_id)
    return lined(
        MemoryLine,
        f"memory {memory_id}",
        id=memory.id,
        question=memory.question if episodes else None,
        question_digest=question_digest(memory.question),
        task=memory.task,
        state=memory.state,
        origin=memory.origin,
        created_at=memory.created_at,
        valid_until=memory.valid_until,
        virtual_tokens=memory.virtual_tokens,
        width=memory.width,
        recipe=lined(RecipeLine, f"recipe of memory {memory_id}", **asdict(memory.recipe)),
        library_version=memory.library_version,
        format_version=memory.format_version,
        final_vote_share=memory.final_vote_share,
        keys=KeysLine(input=encode_key(keys.input), kv=None if keys.kv is None else encode_key(keys.kv)),
        episode=_episode(bank, namespace, memory_id) if episodes else None,
        tensor=tensor_name(place),
    )


def _episode(bank: Bank, namespace: str, memory_id: str) -> EpisodeLine:
    episode, what = bank.episode(namespace, memory_id), f"episode of memory {memory_id}"
    return lined(
        EpisodeLine,
        what,
        id=episode.id,
        majority_answer=episode.majority_answer,
        curve=tuple(lined(StepLine, what, **asdict(step)) for step in episode.curve),
        rollouts=tuple(lined(RolloutLine, what, **asdict(rollout)) for rollout in episode.rollouts),
        seed=episode.seed,
        seconds=episode.seconds,
        created_at=episode.created_at,
    )


def _note_export(
    bank: Bank, namespace: str, manifest: Manifest, ids: Sequence[str], path: Path, *, actor: str
) -> None:
    """Before the pack has its name: a note without a file does no harm, a file without a note could not be purged."""
    where = str(path.absolute())
    for batch in _batches(iter(ids)):
        with changing(bank.database, namespace, actor=actor, vault=bank.vault) as change:
            for memory_id in batch:
                find_memory(change.session, namespace, memory_id)  # it may have been purged since
                row = change.session.get(ExportRow, (namespace, manifest.pack_id, memory_id))
                if row is None:
                    at = {"namespace": namespace, "pack_id": manifest.pack_id, "memory_id": memory_id}
                    change.session.add(ExportRow(**at, path=where, created_at=change.now))
                elif where not in row.path.split("\n"):
                    row.path += "\n" + where  # the same pack in two places
                change.append(EventKind.EXPORTED, memory_id, {"pack_id": manifest.pack_id})


# --- in -----------------------------------------------------------------------------------------------------


def import_pack(
    bank: Bank,
    namespace: str,
    path: Path,
    *,
    public_key: str | Path | None = None,
    new_namespace: bool = False,
    dry_run: bool = False,
    actor: str,
    progress: Progress | None = None,
    observe: Observer | None = None,
) -> ImportReport:
    """Take the memories of a pack in, as candidates. Safe to repeat: what is there already is known, not doubled.

    Args:
        public_key: who must have signed it, as ``ed25519:<base64>`` or a file; None: anybody, or nobody.
        new_namespace: make the namespace, for the pack's model, if it is not in the bank.
        progress: told of two passes over the memories, checking and writing; of one with ``dry_run``.
        observe: told the steps of ``Bank.adopt``.

    Raises:
        InputError: it is no whole pack, or its signature is not what was asked for. Nothing was written.
        ModelMismatch: it is for another model than the namespace. Nothing was written.
        NotFound: the namespace is not in this bank.
    """
    with PackReader(path) as reader:
        signed_by = _signer(reader, public_key)
        known_namespace = _check_model(bank, namespace, reader.model, may_be_new=new_namespace)
        count, told = len(reader.manifest.memories), progress or _quiet
        passes = 1 if dry_run else 2
        ids: tuple[tuple[str, str], ...] = ()
        if dry_run:
            new = _count_new(bank, namespace if known_namespace else None, reader, told)
        else:
            reader.check(lambda done, total: told(done, passes * total))
            if not known_namespace:
                bank.bind(namespace, reader.model, actor=actor)
            ids = tuple(_adopt_all(bank, namespace, reader, signed_by, actor, told, observe))
            new = len(ids)
        return ImportReport(
            pack_id=reader.manifest.pack_id,
            model=reader.model,
            exported_from=reader.manifest.namespace,
            origin=_origin(reader.manifest, signed_by),
            signed_by=signed_by,
            episodes=reader.manifest.episodes,
            memories=count,
            new=new,
            known=count - new,
            dry_run=dry_run,
            ids=ids,
        )


def _signer(reader: PackReader, wanted: str | Path | None) -> str | None:
    """Fingerprint of the key that signed the pack. Raises ``InputError`` if it is not the wanted one, or is wrong."""
    key = PublicKey.read(wanted) if wanted is not None else None
    if reader.signature is None:
        if key is not None:
            raise InputError(
                f"the pack is not signed; expected a signature by {key}: get a signed one, or leave --public-key out"
            )
        return None
    signer = PublicKey.read(reader.signature.public_key)
    if key is not None and signer != key:
        raise BadSignature(f"the pack is signed by {signer}, expected {key}: do not trust it")
    signer.verify(SIGNED + reader.manifest_bytes, reader.signature.signature)
    return signer.fingerprint


def _origin(manifest: Manifest, signed_by: str | None) -> str:
    return f"pack:{manifest.pack_id} " + (f"signed by {signed_by}" if signed_by else "unsigned")


def _check_model(bank: Bank, namespace: str, model: ModelFingerprint, *, may_be_new: bool) -> bool:
    """Whether the namespace is there; then it is for this model."""
    with bank.database.read() as session:
        row = session.get(NamespaceRow, namespace)
    if row is not None:
        publish.check_model(row, model)
    elif not may_be_new:
        raise NotFound(
            f"namespace {namespace[:100]!r} is not in this bank: import with --new to make it for model "
            f"{model.name[:80]!r}"
        )
    return row is not None


def _count_new(bank: Bank, namespace: str | None, reader: PackReader, told: Progress) -> int:
    """How many memories of a pack ``adopt`` would find new; reads the pack to its end. None: a new namespace."""
    from elm_agent.adapters import to_bytes

    vault = bank.vault if namespace is not None else PlainVault()
    seen: set[str] = set()
    known, done, total = 0, 0, len(reader.manifest.memories)
    for batch in _memories(reader):
        plain = [to_bytes(memory.prompt) for memory in batch]
        contents = {publish.content_digest(vault, namespace or "", data) for data in plain} - seen
        seen |= contents
        query = select(MemoryRow.content_digest).where(
            MemoryRow.namespace == namespace, MemoryRow.content_digest.in_(contents)
        )
        with bank.database.read() as session:
            known += len(set(session.scalars(query)))
        done += len(batch)
        told(done, total)
    return len(seen) - known


def _adopt_all(
    bank: Bank,
    namespace: str,
    reader: PackReader,
    signed_by: str | None,
    actor: str,
    told: Progress,
    observe: Observer | None,
) -> Iterator[tuple[str, str]]:
    """(id in the pack, id here) of every memory that is new."""
    done = total = len(reader.manifest.memories)
    for batch in _memories(reader):
        items = [_adopted(memory, reader, signed_by) for memory in batch]
        stored = bank.adopt(namespace, items, actor=actor, observe=observe)
        for memory, (memory_id, created) in zip(batch, stored, strict=True):
            if created:
                yield memory.line.id, memory_id
        done += len(batch)
        told(done, 2 * total)


def _adopted(memory: PackedMemory, reader: PackReader, signed_by: str | None) -> Adopted:
    line, episode, manifest = memory.line, memory.line.episode, reader.manifest
    item = Adopted(
        question=line.question or NO_QUESTION,
        question_digest=line.question_digest,
        task=line.task,
        prompt=memory.prompt,
        keys=memory.keys,
        model=reader.model,
        recipe=line.recipe.recipe(),
        origin=_origin(manifest, signed_by),
        state=MemoryState.CANDIDATE,
        final_vote_share=line.final_vote_share,
        valid_until=line.valid_until,
        library_version=line.library_version,
        detail={"pack_id": manifest.pack_id, "id_in_pack": line.id},
    )
    if episode is None:
        return item
    return replace(
        item,
        majority_answer=episode.majority_answer,
        curve=tuple(StepRecord(**step.model_dump()) for step in episode.curve),
        rollouts=tuple(Rollout(**rollout.model_dump()) for rollout in episode.rollouts),
        seed=episode.seed,
        seconds=episode.seconds,
    )


def _batches(items: Iterator[_Item]) -> Iterator[list[_Item]]:
    while batch := list(islice(items, BATCH)):
        yield batch


def _memories(reader: PackReader) -> Iterator[list[PackedMemory]]:
    """The pack's memories, as many at a time as one transaction takes."""
    from elm_agent.adapters import bytes_of

    batch: list[PackedMemory] = []
    for memory in reader.memories():
        batch.append(memory)
        if len(batch) == BATCH or sum(bytes_of(one.prompt) for one in batch) >= BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _quiet(done: int, total: int) -> None:
    """Progress that nobody looks at."""
