"""Memories in the order of their votes are found by an index."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_memories_votes", "memories", ["namespace", "final_vote_share", "id"])


def downgrade() -> None:
    op.drop_index("ix_memories_votes", "memories")
