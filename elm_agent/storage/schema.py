"""The tables of a bank. Says what is stored, not how it is changed: rows map to records in ``rows``.

The namespace is part of every primary key and unique constraint, so nothing can be found or overwritten from
another tenant by accident. Enums are stored as their values, times in UTC, vectors as little-endian float32.
"""

from __future__ import annotations

import re
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

HEAD = "0001"
"""The newest migration; a test compares it with the migrations themselves."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


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


class Words(TypeDecorator[str]):
    """Text that a model or a user wrote. NUL and lone surrogates, which a database refuses, become U+FFFD."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else _UNSTORABLE.sub("\ufffd", value)


class Base(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012 - read by SQLAlchemy
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[dict[str, Any]]: JSON,
        bytes: LargeBinary,
    }


Name = String(100)  # a namespace
Id = String(64)
Digest = String(80)  # "sha256:" and 64 hex digits
Word = String(32)  # a value of an enum, or a short name


class NamespaceRow(Base):
    """One tenant and the one model its memories are made for. ``revision`` counts changes of its memories."""

    __tablename__ = "namespaces"

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    model_name: Mapped[str] = mapped_column(Text)
    model_weights: Mapped[str] = mapped_column(Text)
    model_tokenizer: Mapped[str] = mapped_column(Text)
    model_template: Mapped[str] = mapped_column(Text)
    model_width: Mapped[int]
    model_id: Mapped[str] = mapped_column(Digest)
    revision: Mapped[int] = mapped_column(BigInteger, default=0)
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
    """One memory; its tensor lies under ``tensor_digest`` in the tensor store."""

    __tablename__ = "memories"
    __table_args__ = (
        ForeignKeyConstraint(["namespace", "episode_id"], ["episodes.namespace", "episodes.id"]),
        Index("ix_memories_state", "namespace", "state", "created_at", "id"),
        Index("ix_memories_created", "namespace", "created_at", "id"),
        Index("ix_memories_tensor", "tensor_digest"),
    )

    namespace: Mapped[str] = mapped_column(Name, ForeignKey("namespaces.name"), primary_key=True)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    state: Mapped[str] = mapped_column(Word)
    pinned: Mapped[bool] = mapped_column(default=False)
    reason: Mapped[str | None] = mapped_column(Words)
    question: Mapped[str] = mapped_column(Words)
    question_digest: Mapped[str] = mapped_column(Digest)
    task: Mapped[str] = mapped_column(Word)
    episode_id: Mapped[str] = mapped_column(Id)
    job_id: Mapped[str | None] = mapped_column(Id)
    tensor_digest: Mapped[str] = mapped_column(Digest)
    virtual_tokens: Mapped[int]
    width: Mapped[int]
    model: Mapped[dict[str, Any]]
    recipe: Mapped[dict[str, Any]]
    library_version: Mapped[str] = mapped_column(Text)
    format_version: Mapped[int]
    final_vote_share: Mapped[float]
    revision: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class KeyRow(Base):
    """One retrieval key of one memory: unit length, ``vector`` holds ``width`` little-endian float32."""

    __tablename__ = "memory_keys"
    __table_args__ = (ForeignKeyConstraint(["namespace", "memory_id"], ["memories.namespace", "memories.id"]),)

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
        Index("ix_jobs_claim", "state", "priority", "created_at", "id"),
        Index("ix_jobs_id", "id"),
        Index("ix_jobs_created", "namespace", "created_at", "id"),
    )

    namespace: Mapped[str] = mapped_column(Name, ForeignKey("namespaces.name"), primary_key=True)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    state: Mapped[str] = mapped_column(Word)
    question: Mapped[str] = mapped_column(Words)
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


class UseRow(Base):
    """One retrieval of one memory. Counts are taken from here, never kept twice."""

    __tablename__ = "uses"
    __table_args__ = (
        ForeignKeyConstraint(["namespace", "memory_id"], ["memories.namespace", "memories.id"]),
        Index("ix_uses_memory", "namespace", "memory_id", "outcome"),
        Index("ix_uses_created", "namespace", "created_at", "id"),
    )

    namespace: Mapped[str] = mapped_column(Name, primary_key=True)
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    memory_id: Mapped[str] = mapped_column(Id)
    question: Mapped[str] = mapped_column(Words)
    similarity: Mapped[float]
    key_kind: Mapped[str] = mapped_column(Word)
    route: Mapped[str] = mapped_column(Word)
    reason: Mapped[str | None] = mapped_column(Words)
    answer: Mapped[str | None] = mapped_column(Words)
    memory_answer: Mapped[str | None] = mapped_column(Words)
    zero_shot_answer: Mapped[str | None] = mapped_column(Words)
    outcome: Mapped[str] = mapped_column(Word)
    created_at: Mapped[datetime]


class EventRow(Base):
    """One line of a namespace's history. Appended only; ``revision`` has no gaps."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_memory", "namespace", "memory_id", "revision"),)

    namespace: Mapped[str] = mapped_column(Name, ForeignKey("namespaces.name"), primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(Word)
    memory_id: Mapped[str | None] = mapped_column(Id)
    actor: Mapped[str] = mapped_column(Words)
    detail: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class OutboxRow(Base):
    """One change that every index of ``kind`` has to make: the memory's key comes in, or goes out."""

    __tablename__ = "outbox"

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
