"""Chained events, subjects, origins, shared memories, tombstones, exports, keys of the vault."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NAME, ID, DIGEST, WORD = sa.String(length=100), sa.String(length=64), sa.String(length=80), sa.String(length=32)
TIME = sa.DateTime(timezone=True)
EPOCH = sa.text("'1970-01-01 00:00:00'")

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

KNOWN_BEFORE = (
    "created", "activated", "quarantined", "evicted", "restored", "pinned", "unpinned", "repaired",
)  # fmt: skip


def upgrade() -> None:
    op.add_column("namespaces", sa.Column("head", DIGEST, nullable=False, server_default=""))
    op.add_column("namespaces", sa.Column("outbox_floor", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("namespaces", sa.Column("moved_to", sa.Text(), nullable=True))

    op.add_column("memories", sa.Column("subject", sa.Text(), nullable=True))
    op.add_column("memories", sa.Column("origin", sa.Text(), nullable=False, server_default="local"))
    op.add_column("memories", sa.Column("valid_until", TIME, nullable=True))
    op.add_column("memories", sa.Column("state_since", TIME, nullable=False, server_default=EPOCH))
    op.add_column("memories", sa.Column("content_digest", DIGEST, nullable=False, server_default=""))
    op.execute("UPDATE memories SET state_since = updated_at, content_digest = tensor_digest")
    op.create_index("ix_memories_content", "memories", ["namespace", "content_digest"])
    op.drop_index("ix_memories_tensor", "memories")
    op.create_index("ix_memories_tensor", "memories", ["namespace", "tensor_digest"])
    op.create_index("ix_memories_subject", "memories", ["namespace", "subject"])
    op.create_index("ix_memories_question", "memories", ["namespace", "question_digest"])
    op.create_index("ix_memories_episode", "memories", ["namespace", "episode_id"])
    op.create_index("ix_memory_keys_memory", "memory_keys", ["namespace", "memory_id"])
    op.create_index("ix_outbox_memory", "outbox", ["namespace", "memory_id"])

    op.add_column("jobs", sa.Column("subject", sa.Text(), nullable=True))
    op.create_index("ix_jobs_memory", "jobs", ["namespace", "memory_id"])
    op.create_index("ix_jobs_subject", "jobs", ["namespace", "subject"])

    _uses_of_shared_memories()
    for name, kind in (("note", sa.Text()), ("salt", ID), ("note_digest", DIGEST)):
        op.add_column("events", sa.Column(name, kind, nullable=True))
    op.add_column("events", sa.Column("digest", DIGEST, nullable=False, server_default=""))
    _chain_events()

    op.create_table(
        "tombstones",
        sa.Column("namespace", NAME, nullable=False),
        sa.Column("memory_id", ID, nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("purged_at", TIME, nullable=False),
        sa.Column("pending", DIGEST, nullable=True),
        sa.ForeignKeyConstraint(["namespace"], ["namespaces.name"]),
        sa.PrimaryKeyConstraint("namespace", "memory_id"),
    )
    op.create_table(
        "exports",
        sa.Column("namespace", NAME, nullable=False),
        sa.Column("pack_id", DIGEST, nullable=False),
        sa.Column("memory_id", ID, nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["namespace"], ["namespaces.name"]),
        sa.PrimaryKeyConstraint("namespace", "pack_id", "memory_id"),
    )
    op.create_table(
        "vault_keys",
        sa.Column("namespace", NAME, nullable=False),
        sa.Column("purpose", WORD, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("algorithm", WORD, nullable=False),
        sa.Column("master_id", DIGEST, nullable=False),
        sa.Column("wrapped", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("retired_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["namespace"], ["namespaces.name"]),
        sa.PrimaryKeyConstraint("namespace", "purpose", "version"),
    )


def downgrade() -> None:
    for table in ("vault_keys", "exports", "tombstones"):
        op.drop_table(table)
    _unchain_events()
    for name in ("digest", "note_digest", "salt", "note"):
        op.drop_column("events", name)
    _uses_of_own_memories()
    for index in ("ix_jobs_subject", "ix_jobs_memory"):
        op.drop_index(index, "jobs")
    op.drop_column("jobs", "subject")
    op.drop_index("ix_outbox_memory", "outbox")
    op.drop_index("ix_memory_keys_memory", "memory_keys")
    for index in ("content", "episode", "question", "subject", "tensor"):
        op.drop_index(f"ix_memories_{index}", "memories")
    op.create_index("ix_memories_tensor", "memories", ["tensor_digest"])
    for name in ("content_digest", "state_since", "valid_until", "origin", "subject"):
        op.drop_column("memories", name)
    for name in ("moved_to", "outbox_floor", "head"):
        op.drop_column("namespaces", name)


# --- uses: the foreign key changes, so the table is made anew and filled -----------------------------------------

SHARED = (
    "id, memory_id, question, similarity, key_kind, route, reason, answer, memory_answer, zero_shot_answer, outcome, "
    "created_at"
)


def _uses_of_shared_memories() -> None:
    _make_uses(
        sa.Column("memory_namespace", NAME, nullable=False),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("ledgered", sa.BigInteger(), nullable=True),
        key="memory_namespace",
    )
    op.execute(
        f"INSERT INTO uses_anew (namespace, memory_namespace, {SHARED}) "
        f"SELECT namespace, namespace, {SHARED} FROM uses"
    )
    _take_place_of_uses(key="memory_namespace")
    op.create_index("ix_uses_ledgered", "uses", ["memory_namespace", "ledgered"])
    op.create_index("ix_uses_subject", "uses", ["namespace", "subject"])


def _uses_of_own_memories() -> None:
    """Uses of another namespace's memory have no place in the first schema."""
    _make_uses(key="namespace")
    op.execute(
        f"INSERT INTO uses_anew (namespace, {SHARED}) SELECT namespace, {SHARED} FROM uses "
        "WHERE memory_namespace = namespace"
    )
    _take_place_of_uses(key="namespace")


def _make_uses(*more: sa.Column[Any], key: str) -> None:
    op.create_table(
        "uses_anew",
        sa.Column("namespace", NAME, nullable=False),
        sa.Column("id", ID, nullable=False),
        sa.Column("memory_id", ID, nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("similarity", sa.Double(), nullable=False),
        sa.Column("key_kind", WORD, nullable=False),
        sa.Column("route", WORD, nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("memory_answer", sa.Text(), nullable=True),
        sa.Column("zero_shot_answer", sa.Text(), nullable=True),
        sa.Column("outcome", WORD, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        *more,
        sa.ForeignKeyConstraint([key, "memory_id"], ["memories.namespace", "memories.id"]),
        sa.PrimaryKeyConstraint("namespace", "id"),
    )


def _take_place_of_uses(*, key: str) -> None:
    op.drop_table("uses")
    op.rename_table("uses_anew", "uses")
    op.create_index("ix_uses_created", "uses", ["namespace", "created_at", "id"])
    op.create_index("ix_uses_memory", "uses", [key, "memory_id", "outcome"])


# --- events: the arithmetic of the chain as it was when this was written -----------------------------------------

namespaces = sa.table(
    "namespaces", sa.column("name", NAME), sa.column("revision", sa.BigInteger()), sa.column("head", DIGEST)
)
events = sa.table(
    "events", sa.column("namespace", NAME), sa.column("revision", sa.BigInteger()), sa.column("kind", WORD),
    sa.column("memory_id", ID), sa.column("actor", sa.Text()), sa.column("detail", sa.JSON()),
    sa.column("note", sa.Text()), sa.column("salt", ID), sa.column("note_digest", DIGEST),
    sa.column("digest", DIGEST), sa.column("created_at", TIME),
)  # fmt: skip


def _chain_events() -> None:
    """Give every event its link. Reasons, free text until now among the details, become notes."""
    connection = op.get_bind()
    for name in connection.scalars(sa.select(namespaces.c.name)).all():
        head = _digest({"algorithm": "sha256", "genesis": name})
        found = connection.execute(sa.select(events).where(events.c.namespace == name).order_by(events.c.revision))
        for event in found.all():
            detail = _storable(event.detail)
            note = detail.pop("reason", None)
            salt = secrets.token_hex(16) if note is not None else None
            bound = "sha256:" + hashlib.sha256(f"{salt}\n{note}".encode()).hexdigest() if note is not None else None
            head = _digest(
                {
                    "algorithm": "sha256", "previous": head, "namespace": name, "revision": event.revision,
                    "kind": event.kind, "memory_id": event.memory_id, "actor": _storable(event.actor),
                    "detail": detail, "note_digest": bound, "created_at": _utc(event.created_at),
                }
            )  # fmt: skip
            here = (events.c.namespace == name) & (events.c.revision == event.revision)
            connection.execute(
                sa.update(events)
                .where(here)
                .values(detail=detail, note=note, salt=salt, note_digest=bound, digest=head)
            )
        connection.execute(sa.update(namespaces).where(namespaces.c.name == name).values(head=head))


def _storable(value: Any) -> Any:
    """What no database keeps, and the first schema hid in JSON, becomes U+FFFD."""
    if isinstance(value, str):
        return UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_storable(name): _storable(item) for name, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list) else value


def _unchain_events() -> None:
    """Notes become reasons again; a kind that the first schema does not know becomes a repair that names it."""
    connection = op.get_bind()
    for event in connection.execute(sa.select(events)).all():
        detail, kind = dict(event.detail), event.kind
        if event.note is not None:
            detail["reason"] = event.note
        if kind not in KNOWN_BEFORE:
            detail, kind = detail | {"was": kind}, "repaired"
        here = (events.c.namespace == event.namespace) & (events.c.revision == event.revision)
        connection.execute(sa.update(events).where(here).values(detail=detail, kind=kind))


def _digest(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode("utf-8")).hexdigest()


def _utc(moment: datetime) -> str:
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return aware.isoformat(timespec="microseconds")
