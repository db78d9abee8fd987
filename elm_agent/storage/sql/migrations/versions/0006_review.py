"""A memory and a use say whether a person was asked about them, and what they said."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLES = ("memories", "uses")


def upgrade() -> None:
    for table in TABLES:
        op.add_column(table, sa.Column("review", sa.String(length=32), nullable=True))
        asked = sa.text("review IS NOT NULL")
        op.create_index(
            f"ix_{table}_review", table, ["namespace", "review", "id"], sqlite_where=asked, postgresql_where=asked
        )
    op.add_column("uses", sa.Column("review_note", sa.Text(), nullable=True))


def downgrade() -> None:
    """What waits stays a candidate; the older schema does not know answers that a person is still to decide about."""
    op.drop_column("uses", "review_note")
    op.execute("UPDATE uses SET route = 'zero_shot' WHERE route = 'deferred'")
    for table in TABLES:
        op.drop_index(f"ix_{table}_review", table)
        op.drop_column(table, "review")
