"""Jobs and unfinished purges are found by indexes, salts may be sealed, a use belongs to a namespace of the bank."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TURN = (sa.text("priority DESC"), "created_at", "id", "run_after", "task")
NAME = re.compile(r"(?![.-])[A-Za-z0-9._-]{1,100}")


def upgrade() -> None:
    op.drop_index("ix_jobs_claim", "jobs")
    op.create_index("ix_jobs_claim", "jobs", ["state", *TURN])
    op.create_index("ix_jobs_model", "jobs", ["model_id", "state", *TURN])
    op.create_index("ix_jobs_updated", "jobs", ["state", "updated_at"])
    unfinished = sa.text("pending IS NOT NULL")
    op.create_index(
        "ix_tombstones_pending", "tombstones", ["namespace"], sqlite_where=unfinished, postgresql_where=unfinished
    )
    with op.batch_alter_table("events") as events:
        events.alter_column("salt", type_=sa.Text(), existing_type=sa.String(length=64), existing_nullable=True)
    _house_uses()
    with op.batch_alter_table("uses") as uses:
        uses.create_foreign_key("fk_uses_namespace", "namespaces", ["namespace"], ["name"])


def downgrade() -> None:
    """``events.salt`` stays wide: a sealed salt has no place in the old column, and is whole again on the way up."""
    with op.batch_alter_table("uses") as uses:
        uses.drop_constraint("fk_uses_namespace", type_="foreignkey")
    op.drop_index("ix_tombstones_pending", "tombstones")
    op.drop_index("ix_jobs_updated", "jobs")
    op.drop_index("ix_jobs_model", "jobs")
    op.drop_index("ix_jobs_claim", "jobs")
    op.create_index("ix_jobs_claim", "jobs", ["state", "priority", "created_at", "id"])


def _house_uses() -> None:
    """Uses were taken from namespaces that nobody had bound: they get one, for the model of the memory they used.

    A name that never was usable gets none, and its uses go.
    """
    connection = op.get_bind()
    uses, namespaces = (sa.Table(name, sa.MetaData(), autoload_with=connection) for name in ("uses", "namespaces"))
    homeless = ~sa.exists().where(namespaces.c.name == uses.c.namespace)
    found = sa.select(uses.c.namespace, sa.func.min(uses.c.memory_namespace), sa.func.min(uses.c.created_at))
    for name, memory_namespace, first in connection.execute(found.where(homeless).group_by(uses.c.namespace)).all():
        if not NAME.fullmatch(name):
            connection.execute(sa.delete(uses).where(uses.c.namespace == name))
            continue
        like = connection.execute(sa.select(namespaces).where(namespaces.c.name == memory_namespace)).mappings()
        anew = {"name": name, "revision": 0, "outbox_floor": 0, "head": _genesis(name), "created_at": first}
        connection.execute(sa.insert(namespaces).values(dict(like.one()) | anew | {"created_by": "migration 0003"}))


def _genesis(name: str) -> str:
    value: dict[str, Any] = {"algorithm": "sha256", "genesis": name}
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode("utf-8")).hexdigest()
