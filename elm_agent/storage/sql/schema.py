"""The tables of a bank. Says what is stored, not how it is changed: rows map to records in ``rows``.

The namespace is part of every primary key and unique constraint, so nothing can be found or overwritten from
another tenant by accident. Enums are stored as their values, times in UTC, vectors as little-endian float32.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from elm_agent.records import UNSTORABLE
from elm_agent.storage.sql.faults import Damaged

HEAD = "0007"
"""The newest migration; a test compares it with the migrations themselves."""


class Json(TypeDecorator[Any]):
    """JSON; text that is none raises ``Damaged``."""

    impl = JSON
    cache_ok = True

    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        return self.impl_instance.coerce_compared_value(op, value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        return _whole(super().result_processor(dialect, coltype), "JSON")


class UtcDateTime(TypeDecorator[datetime]):
    """Aware in Python, UTC in the database; SQLite has no time zones and stores the UTC digits."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        return _whole(super().result_processor(dialect, coltype), "a time")


def _whole(process: Callable[[Any], Any] | None, what: str) -> Callable[[Any], Any] | None:
    """What a damaged file makes of a column says so, instead of failing wherever it is read."""
    if process is None:
        return None

    def checked(value: Any) -> Any:
        try:
            return process(value)
        except (ValueError, TypeError) as error:
            raise Damaged(f"a row is damaged: {str(value)[:60]!r} is not {what}; run `elm-agent doctor`") from error

    return checked


def storable(text: str) -> str:
    """``text`` as a database keeps it: NUL and lone surrogates, which it refuses, become U+FFFD."""
    return UNSTORABLE.sub("\ufffd", text)


class Words(TypeDecorator[str]):
    """Text that a model or a user wrote; see ``storable``."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else storable(value)


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012 - read by SQLAlchemy
        datetime: UtcDateTime,
        dict[str, Any]: Json,
        list[dict[str, Any]]: Json,
        bytes: LargeBinary,
    }


Name = String(100)  # a namespace
Id = String(64)
Digest = String(80)  # "sha256:" and 64 hex digits
Word = String(32)  # a value of an enum, or a short name


class NamespaceRow(Base):
    """One tenant and the one model its memories are made for.

    ``revision`` counts the events of its chain and ``head`` is the digest of the last one (see ``chain``);
    ``outbox_floor``: outbox rows up to this revision were pruned. ``moved_to``: where the bank went; it then refuses
    every change.
    """

    __tablename__ = "namespaces"

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    model_name: Mapped[str] = mapped_column(Text)
    model_weights: Mapped[str] = mapped_column(Text)
    model_tokenizer: Mapped[str] = mapped_column(Text)
    model_template: Mapped[str] = mapped_column(Text)
    model_width: Mapped[int]
    model_id: Mapped[str] = mapped_column(Digest)
    revision: Mapped[int] = mapped_column(BigInteger, default=0)
    head: Mapped[str] = mapped_column(Digest)
    outbox_floor: Mapped[int] = mapped_column(BigInteger, default=0)
    moved_to: Mapped[str | None] = mapped_column(Text)
    created_by: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]


class EpisodeRow(Base):
    """Where a memory came from. The rollouts and the curve are read only as a whole, so they are JSON."""

    __tablename__ = "episodes"

    namespace: Mapped[str] = mapped_column(Name, ForeignKey("namespaces.name"), primary_key=True)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    question: Mapped[str] = mapped_column(Words)
    task: Mapped[str] = mapped_column(Word)
    majority_answer: Mapped[str | None] = mapped_column(Words)
    curve: Mapped[list[dict[str, Any]]]
    rollouts: Mapped[list[dict[str, Any]]]
    seed: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]
    created_at: Mapped[datetime]


class MemoryRow(Base):
    """One memory; its tensor lies under ``tensor_digest`` in the tensor store. Gone, with a tombstone, once purged.

    ``subject``: whose experience it is, so that it can be forgotten. ``origin``: "local", or the pack it came in.
    ``tensor_digest`` names the stored bytes, ``content_digest`` the prompt itself: they differ where it is sealed.
    ``review``: see ``records.Review``.
    """

    __tablename__ = "memories"
    __table_args__ = (
        ForeignKeyConstraint(["namespace", "episode_id"], ["episodes.namespace", "episodes.id"]),
        Index("ix_memories_state", "namespace", "state", "created_at", "id"),
        Index("ix_memories_created", "namespace", "created_at", "id"),
        Index("ix_memories_votes", "namespace", "final_vote_share", "id"),
        Index("ix_memories_tensor", "namespace", "tensor_digest"),
        Index("ix_memories_content", "namespace", "content_digest"),
        Index("ix_memories_subject", "namespace", "subject"),
        Index("ix_memories_question", "namespace", "question_digest"),
        Index("ix_memories_episode", "namespace", "episode_id"),  # a purge would read the whole namespace
    )

    namespace: Mapped[str] = mapped_column(Name, ForeignKey("namespaces.name"), primary_key=True)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    state: Mapped[str] = mapped_column(Word)
    pinned: Mapped[bool] = mapped_column(default=False)
    reason: Mapped[str | None] = mapped_column(Words)
    question: Mapped[str] = mapped_column(Words)
    question_digest: Mapped[str] = mapped_column(Digest)
    subject: Mapped[str | None] = mapped_column(Words)
    origin: Mapped[str] = mapped_column(Text, default="local")
    task: Mapped[str] = mapped_column(Word)
    episode_id: Mapped[str] = mapped_column(Id)
    job_id: Mapped[str | None] = mapped_column(Id)
    tensor_digest: Mapped[str] = mapped_column(Digest)
    content_digest: Mapped[str] = mapped_column(Digest)
    virtual_tokens: Mapped[int]
    width: Mapped[int]
    model: Mapped[dict[str, Any]]
    recipe: Mapped[dict[str, Any]]
    library_version: Mapped[str] = mapped_column(Text)
    format_version: Mapped[int]
    final_vote_share: Mapped[float]
    revision: Mapped[int] = mapped_column(BigInteger)
    valid_until: Mapped[datetime | None]
    review: Mapped[str | None] = mapped_column(Word)
    state_since: Mapped[datetime]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class KeyRow(Base):
    """One retrieval key of one memory: unit length, ``vector`` holds ``width`` little-endian float32."""

    __tablename__ = "memory_keys"
    __table_args__ = (
        ForeignKeyConstraint(["namespace", "memory_id"], ["memories.namespace", "memories.id"]),
        Index("ix_memory_keys_memory", "namespace", "memory_id"),
    )

    namespace: Mapped[str] = mapped_column(Name, primary_key=True)
    kind: Mapped[str] = mapped_column(Word, primary_key=True)
    memory_id: Mapped[str] = mapped_column(Id, primary_key=True)
    width: Mapped[int]
    vector: Mapped[bytes]


class JobRow(Base):
    """One background job and the record of its attempts."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("namespace", "idempotency_key", name="uq_jobs_idempotency"),
        Index("ix_jobs_id", "id"),
        Index("ix_jobs_created", "namespace", "created_at", "id"),
        Index("ix_jobs_memory", "namespace", "memory_id"),
        Index("ix_jobs_subject", "namespace", "subject"),
    )

    namespace: Mapped[str] = mapped_column(Name, ForeignKey("namespaces.name"), primary_key=True)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    state: Mapped[str] = mapped_column(Word)
    question: Mapped[str] = mapped_column(Words)
    subject: Mapped[str | None] = mapped_column(Words)
    task: Mapped[str] = mapped_column(Word)
    priority: Mapped[int]
    attempts: Mapped[int]
    max_attempts: Mapped[int]
    idempotency_key: Mapped[str] = mapped_column(Digest)
    model_id: Mapped[str] = mapped_column(Digest)
    recipe: Mapped[dict[str, Any]]
    progress: Mapped[dict[str, Any]]
    cancel_requested: Mapped[bool]
    reason: Mapped[str | None] = mapped_column(Words)
    memory_id: Mapped[str | None] = mapped_column(Id)
    owner: Mapped[str | None] = mapped_column(Text)
    fence: Mapped[int] = mapped_column(BigInteger)
    lease_until: Mapped[datetime | None]
    run_after: Mapped[datetime]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


# In the order in which jobs are claimed; what else is asked of each comes last, so that the index alone answers it.
_TURN = (JobRow.priority.desc(), JobRow.created_at, JobRow.id, JobRow.run_after, JobRow.task)
Index("ix_jobs_claim", JobRow.state, *_TURN)
Index("ix_jobs_model", JobRow.model_id, JobRow.state, *_TURN)
Index("ix_jobs_updated", JobRow.state, JobRow.updated_at)


# All that a posterior is made of, so that the index alone answers it.
_EVIDENCE = ("outcome", "route", "feedback_effect", "namespace")


class UseRow(Base):
    """One retrieval of one memory, in the namespace of who asked; a shared memory lives in another namespace.

    ``ledgered``: revision of the event, in the memory's namespace, that counted this use.
    """

    __tablename__ = "uses"
    __table_args__ = (
        ForeignKeyConstraint(["memory_namespace", "memory_id"], ["memories.namespace", "memories.id"]),
        Index("ix_uses_memory", "memory_namespace", "memory_id", *_EVIDENCE),
        Index("ix_uses_created", "namespace", "created_at", "id"),
        Index("ix_uses_ledgered", "memory_namespace", "ledgered"),
        Index("ix_uses_subject", "namespace", "subject"),
    )

    namespace: Mapped[str] = mapped_column(Name, ForeignKey("namespaces.name"), primary_key=True)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    memory_namespace: Mapped[str] = mapped_column(Name)
    memory_id: Mapped[str] = mapped_column(Id)
    question: Mapped[str] = mapped_column(Words)
    subject: Mapped[str | None] = mapped_column(Words)
    similarity: Mapped[float]
    key_kind: Mapped[str] = mapped_column(Word)
    route: Mapped[str] = mapped_column(Word)
    reason: Mapped[str | None] = mapped_column(Words)
    answer: Mapped[str | None] = mapped_column(Words)
    memory_answer: Mapped[str | None] = mapped_column(Words)
    zero_shot_answer: Mapped[str | None] = mapped_column(Words)
    outcome: Mapped[str] = mapped_column(Word)
    feedback: Mapped[str | None] = mapped_column(Word)
    feedback_answer: Mapped[str | None] = mapped_column(Words)
    feedback_effect: Mapped[str | None] = mapped_column(Word)
    feedback_at: Mapped[datetime | None]
    tier: Mapped[str | None] = mapped_column(Word)
    review: Mapped[str | None] = mapped_column(Word)
    review_note: Mapped[str | None] = mapped_column(Words)
    ledgered: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime]


# What waits for a person, and what they said: few rows of many, in the order in which they came.
for _row in (MemoryRow, UseRow):
    Index(
        f"ix_{_row.__tablename__}_review",
        _row.namespace,
        _row.review,
        _row.id,
        sqlite_where=_row.review.is_not(None),
        postgresql_where=_row.review.is_not(None),
    )


class CalibrationRow(Base):
    """When memories help in a namespace, found by keys of ``kind``: see ``records.Calibration``."""

    __tablename__ = "calibrations"

    namespace: Mapped[str] = mapped_column(Name, ForeignKey("namespaces.name"), primary_key=True)
    kind: Mapped[str] = mapped_column(Word, primary_key=True)
    model_id: Mapped[str] = mapped_column(Digest)
    intercept: Mapped[float]
    of_similarity: Mapped[float]
    of_utility: Mapped[float]
    uses: Mapped[int]
    helped: Mapped[float]
    hurt: Mapped[float]
    fitted_at: Mapped[datetime]


class EventRow(Base):
    """One link of a namespace's chain (see ``chain``). Appended only; ``revision`` has no gaps.

    ``detail`` is hashed and stays for ever, so it holds nothing personal. Free text is the ``note``; the hash covers
    only its salted digest, and a purge erases note and salt. Where the note is sealed, so is the salt.
    """

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_memory", "namespace", "memory_id", "revision"),)

    namespace: Mapped[str] = mapped_column(Name, ForeignKey("namespaces.name"), primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(Word)
    memory_id: Mapped[str | None] = mapped_column(Id)
    actor: Mapped[str] = mapped_column(Words)
    detail: Mapped[dict[str, Any]]
    note: Mapped[str | None] = mapped_column(Words)
    salt: Mapped[str | None] = mapped_column(Text)
    note_digest: Mapped[str | None] = mapped_column(Digest)
    digest: Mapped[str] = mapped_column(Digest)
    created_at: Mapped[datetime]


class OutboxRow(Base):
    """One change that every index of ``kind`` has to make: the memory's key comes in, or goes out."""

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_memory", "namespace", "memory_id"),)

    namespace: Mapped[str] = mapped_column(Name, ForeignKey("namespaces.name"), primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(Word)
    memory_id: Mapped[str] = mapped_column(Id)
    present: Mapped[bool]


class WatermarkRow(Base):
    """How far a durable index has come: every outbox row up to ``revision`` is in it."""

    __tablename__ = "index_watermarks"

    namespace: Mapped[str] = mapped_column(Name, ForeignKey("namespaces.name"), primary_key=True)
    index_name: Mapped[str] = mapped_column(Word, primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger)


class TombstoneRow(Base):
    """What is left of a purged memory: that it was, and who removed it when.

    ``pending``: digest of the tensor, until its file and all copies in indexes and journals are gone as well.
    """

    __tablename__ = "tombstones"

    namespace: Mapped[str] = mapped_column(Name, ForeignKey("namespaces.name"), primary_key=True)
    memory_id: Mapped[str] = mapped_column(Id, primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger)
    actor: Mapped[str] = mapped_column(Words)
    purged_at: Mapped[datetime]
    pending: Mapped[str | None] = mapped_column(Digest)

    __table_args__ = (
        Index(
            "ix_tombstones_pending",
            "namespace",
            sqlite_where=pending.is_not(None),
            postgresql_where=pending.is_not(None),
        ),
    )


class ExportRow(Base):
    """One memory in one pack that left the bank, so that a purge can say which files still hold it."""

    __tablename__ = "exports"

    namespace: Mapped[str] = mapped_column(Name, ForeignKey("namespaces.name"), primary_key=True)
    pack_id: Mapped[str] = mapped_column(Digest, primary_key=True)
    memory_id: Mapped[str] = mapped_column(Id, primary_key=True)
    path: Mapped[str] = mapped_column(Words)
    created_at: Mapped[datetime]


class VaultKeyRow(Base):
    """One key of a namespace, wrapped by the master key. Purpose "data" has versions, purpose "blind" has one."""

    __tablename__ = "vault_keys"

    namespace: Mapped[str] = mapped_column(Name, ForeignKey("namespaces.name"), primary_key=True)
    purpose: Mapped[str] = mapped_column(Word, primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    algorithm: Mapped[str] = mapped_column(Word)
    master_id: Mapped[str] = mapped_column(Digest)
    wrapped: Mapped[bytes]
    created_at: Mapped[datetime]
    retired_at: Mapped[datetime | None]
