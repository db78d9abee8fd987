"""Alembic's entry. Migrates the connection it is given, or what ``-x url=`` or ELM_DATABASE_URL names."""

from __future__ import annotations

import os
from typing import Literal

from alembic import context
from sqlalchemy import Connection

from elm_agent.storage.sql.schema import Base, UtcDateTime, Words


def plain_type(kind: str, item: object, _context: object) -> str | Literal[False]:
    """A generated migration names SQLAlchemy's own types, so that later changes of ours do not rewrite history."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return "sa.Text()" if kind == "type" and isinstance(item, Words) else False


def run(connection: Connection) -> None:
    # one transaction for all steps: SQLite, too, undoes DDL, because Database begins its transactions itself
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        transactional_ddl=True,
        render_item=plain_type,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


def run_by_hand() -> None:
    from elm_agent.storage.sql.database import connect_only

    url = context.get_x_argument(as_dictionary=True).get("url") or os.environ.get("ELM_DATABASE_URL")
    if url is None:
        raise SystemExit("name the database: alembic -x url=sqlite:///.elm/elm.sqlite …, or set ELM_DATABASE_URL")
    engine = connect_only(url)
    with engine.begin() as connection:
        run(connection)
    engine.dispose()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
elif context.is_offline_mode():
    context.configure(dialect_name="postgresql", target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    run_by_hand()
