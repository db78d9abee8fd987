"""Users' feedback stands with the use it is about, and one index holds all that the worth of a memory is made of."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

WORD = sa.String(length=32)
BEFORE = ("memory_namespace", "memory_id", "outcome")


def upgrade() -> None:
    op.add_column("uses", sa.Column("feedback", WORD, nullable=True))
    op.add_column("uses", sa.Column("feedback_answer", sa.Text(), nullable=True))
    op.add_column("uses", sa.Column("feedback_effect", WORD, nullable=True))
    op.add_column("uses", sa.Column("feedback_at", sa.DateTime(timezone=True), nullable=True))
    op.drop_index("ix_uses_memory", "uses")
    op.create_index("ix_uses_memory", "uses", [*BEFORE, "route", "feedback_effect", "namespace"])


def downgrade() -> None:
    """What users said has no place in the older schema and goes."""
    op.drop_index("ix_uses_memory", "uses")
    op.create_index("ix_uses_memory", "uses", list(BEFORE))
    for name in ("feedback_at", "feedback_effect", "feedback_answer", "feedback"):
        op.drop_column("uses", name)
