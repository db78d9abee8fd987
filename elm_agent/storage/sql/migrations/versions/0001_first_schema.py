"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "namespaces",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("model_weights", sa.Text(), nullable=False),
        sa.Column("model_tokenizer", sa.Text(), nullable=False),
        sa.Column("model_template", sa.Text(), nullable=False),
        sa.Column("model_width", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.String(length=80), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "episodes",
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.Column("majority_answer", sa.Text(), nullable=True),
        sa.Column("curve", sa.JSON(), nullable=False),
        sa.Column("rollouts", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace"],
            ["namespaces.name"],
        ),
        sa.PrimaryKeyConstraint("namespace", "id"),
    )
    op.create_table(
        "events",
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("memory_id", sa.String(length=64), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace"],
            ["namespaces.name"],
        ),
        sa.PrimaryKeyConstraint("namespace", "revision"),
    )
    op.create_index("ix_events_memory", "events", ["namespace", "memory_id", "revision"])

    op.create_table(
        "index_watermarks",
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("index_name", sa.String(length=32), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace"],
            ["namespaces.name"],
        ),
        sa.PrimaryKeyConstraint("namespace", "index_name"),
    )
    op.create_table(
        "jobs",
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("idempotency_key", sa.String(length=80), nullable=False),
        sa.Column("model_id", sa.String(length=80), nullable=False),
        sa.Column("recipe", sa.JSON(), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("memory_id", sa.String(length=64), nullable=True),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("run_after", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace"],
            ["namespaces.name"],
        ),
        sa.PrimaryKeyConstraint("namespace", "id"),
        sa.UniqueConstraint("namespace", "idempotency_key", name="uq_jobs_idempotency"),
    )
    op.create_index("ix_jobs_claim", "jobs", ["state", "priority", "created_at", "id"])
    op.create_index("ix_jobs_created", "jobs", ["namespace", "created_at", "id"])
    op.create_index("ix_jobs_id", "jobs", ["id"])

    op.create_table(
        "outbox",
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("n", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("memory_id", sa.String(length=64), nullable=False),
        sa.Column("present", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace"],
            ["namespaces.name"],
        ),
        sa.PrimaryKeyConstraint("namespace", "revision", "n"),
    )
    op.create_table(
        "memories",
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("question_digest", sa.String(length=80), nullable=False),
        sa.Column("task", sa.String(length=32), nullable=False),
        sa.Column("episode_id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=True),
        sa.Column("tensor_digest", sa.String(length=80), nullable=False),
        sa.Column("virtual_tokens", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("model", sa.JSON(), nullable=False),
        sa.Column("recipe", sa.JSON(), nullable=False),
        sa.Column("library_version", sa.Text(), nullable=False),
        sa.Column("format_version", sa.Integer(), nullable=False),
        sa.Column("final_vote_share", sa.Double(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "episode_id"],
            ["episodes.namespace", "episodes.id"],
        ),
        sa.ForeignKeyConstraint(
            ["namespace"],
            ["namespaces.name"],
        ),
        sa.PrimaryKeyConstraint("namespace", "id"),
    )
    op.create_index("ix_memories_created", "memories", ["namespace", "created_at", "id"])
    op.create_index("ix_memories_state", "memories", ["namespace", "state", "created_at", "id"])
    op.create_index("ix_memories_tensor", "memories", ["tensor_digest"])

    op.create_table(
        "memory_keys",
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("memory_id", sa.String(length=64), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "memory_id"],
            ["memories.namespace", "memories.id"],
        ),
        sa.PrimaryKeyConstraint("namespace", "kind", "memory_id"),
    )
    op.create_table(
        "uses",
        sa.Column("namespace", sa.String(length=100), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("memory_id", sa.String(length=64), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("similarity", sa.Double(), nullable=False),
        sa.Column("key_kind", sa.String(length=32), nullable=False),
        sa.Column("route", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("memory_answer", sa.Text(), nullable=True),
        sa.Column("zero_shot_answer", sa.Text(), nullable=True),
        sa.Column("outcome", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "memory_id"],
            ["memories.namespace", "memories.id"],
        ),
        sa.PrimaryKeyConstraint("namespace", "id"),
    )
    op.create_index("ix_uses_created", "uses", ["namespace", "created_at", "id"])
    op.create_index("ix_uses_memory", "uses", ["namespace", "memory_id", "outcome"])


def downgrade() -> None:

    op.drop_table("uses")
    op.drop_table("memory_keys")

    op.drop_table("memories")
    op.drop_table("outbox")

    op.drop_table("jobs")
    op.drop_table("index_watermarks")

    op.drop_table("events")
    op.drop_table("episodes")
    op.drop_table("namespaces")
