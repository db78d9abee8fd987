"""Each namespace may have a calibration of when memories help, and a use says what tier its answer was made in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

WORD = sa.String(length=32)


def upgrade() -> None:
    op.add_column("uses", sa.Column("tier", WORD, nullable=True))
    op.create_table(
        "calibrations",
        sa.Column("namespace", sa.String(length=100), sa.ForeignKey("namespaces.name"), primary_key=True),
        sa.Column("kind", WORD, primary_key=True),
        sa.Column("model_id", sa.String(length=80), nullable=False),
        sa.Column("intercept", sa.Double(), nullable=False),
        sa.Column("of_similarity", sa.Double(), nullable=False),
        sa.Column("of_utility", sa.Double(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("helped", sa.Double(), nullable=False),
        sa.Column("hurt", sa.Double(), nullable=False),
        sa.Column("fitted_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    """Calibrations can be fitted anew; the older schema does not know answers of a memory alone."""
    op.execute("UPDATE uses SET route = 'memory' WHERE route = 'memory_alone'")
    op.drop_table("calibrations")
    op.drop_column("uses", "tier")
