"""Nearest keys in the bank's own PostgreSQL database, by the extension pgvector. Knows nothing of the bank's tables.

Everything lies in a schema of its own, ``elm_index``: one table with an HNSW index for each namespace and key kind,
so that no search can cross a namespace, and a registry that says what each holds. Widths (pgvector's limits on
2026-11, https://github.com/pgvector/pgvector#hnsw): up to 2,000 as float32, up to 4,000 as float16, above by a
projection whose width and seed the registry keeps. An older HNSW graph holds what was deleted until a vacuum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from elm_agent.errors import IndexUnavailable, SettingsError
from elm_agent.protocols import IndexCapability, IndexEntry
from elm_agent.records import Hit, KeyKind, Vector
from elm_agent.storage.indexes import projection
from elm_agent.storage.indexes.key_table import check_vector
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.faults import explain
from elm_agent.storage.sql.locks import only_one

_FULL, _HALF = 2_000, 4_000  # widths that an HNSW index bears as vector and as halfvec
_CHUNK = 500
_SLACK = 32  # hits fetched beyond k, so that ties at the border are decided by id
_EF = 200  # at least so many candidates are followed in the graph
_EF_MOST = 1_000  # pgvector's limit; beyond, the scan goes on by itself (iterative)

_REGISTRY = """
CREATE TABLE IF NOT EXISTS elm_index.tables (
    namespace text COLLATE "C" NOT NULL, kind text NOT NULL, name text NOT NULL, width int NOT NULL,
    stored_width int NOT NULL, seed int, PRIMARY KEY (namespace, kind))
"""


@dataclass(frozen=True, slots=True)
class _Table:
    """``width`` of the keys, ``stored`` of what lies in the table; ``seed`` of the projection, if there is one."""

    name: str
    width: int
    stored: int
    seed: int | None

    @property
    def type(self) -> str:
        return "vector" if self.stored <= _FULL else "halfvec"

    def literal(self, vector: Vector) -> str:
        """The vector as pgvector reads it."""
        if self.seed is not None:
            vector = projection.project(vector, width=self.stored, seed=self.seed)
        return "[" + ",".join(map(repr, vector.tolist())) + "]"


class PgvectorIndex:
    """A ``KeyIndex`` in ``database``. Approximate: the caller re-checks its hits. It does not close the database."""

    name = "pgvector"
    capabilities = frozenset(
        {IndexCapability.BASE, IndexCapability.DURABLE, IndexCapability.SHARED, IndexCapability.ERASES}
    )
    width_limit: int | None = _HALF

    def __init__(self, database: Database) -> None:
        if database.sqlite:
            raise SettingsError(
                "index 'pgvector' lives in the PostgreSQL database of the bank, and this bank has SQLite: set "
                "database_url to postgresql://…, or choose another index"
            )
        self.url = database.engine.url.render_as_string(hide_password=False)
        self._database = database

    @property
    def rebuilt(self) -> bool:
        with self._connection() as connection:
            return connection.scalar(text("SELECT to_regclass('elm_index.fed')")) is None

    def acknowledge_rebuild(self) -> None:
        with self._alone(), self._connection() as connection:
            self._prepare(connection)
            connection.execute(text("CREATE TABLE IF NOT EXISTS elm_index.fed ()"))

    def apply(self, namespace: str, kind: KeyKind, upsert: Iterable[IndexEntry], delete: Iterable[str]) -> None:
        """See ``KeyIndex``; one transaction. Upserts apply before deletions.

        Raises:
            InputError: a vector of another dtype or width; then nothing changed.
            IndexUnavailable: the database or its extension cannot be used.
        """
        vectors = {entry.memory_id: entry.vector for entry in upsert}
        gone = sorted(set(delete))
        table = self._find(namespace, kind)
        if table is None:
            if not vectors:
                return
            table = self._make(namespace, kind, check_vector(next(iter(vectors.values()))).shape[0])
        for vector in vectors.values():
            check_vector(vector, table.width)
        put = text(
            f"INSERT INTO elm_index.{table.name} (id, key) VALUES (:id, CAST(:key AS {table.type})) "
            "ON CONFLICT (id) DO UPDATE SET key = excluded.key"
        )
        rows = [{"id": name, "key": table.literal(vectors[name])} for name in sorted(vectors)]
        with self._connection() as connection:
            for start in range(0, len(rows), _CHUNK):
                connection.execute(put, rows[start : start + _CHUNK])
            if gone:
                connection.execute(text(f"DELETE FROM elm_index.{table.name} WHERE id = ANY(:ids)"), {"ids": gone})

    def search(self, namespace: str, kind: KeyKind, query: Vector, k: int) -> list[Hit]:
        """See ``KeyIndex``. Raises ``InputError`` when the query does not fit the keys."""
        table = self._find(namespace, kind)
        if table is None:
            return []
        check_vector(query, table.width)
        if k < 1:
            return []
        nearest = text(
            f"SELECT id, 1 - (key <=> CAST(:query AS {table.type})) FROM elm_index.{table.name} "
            f"ORDER BY key <=> CAST(:query AS {table.type}) LIMIT :wanted"
        )
        wanted = min(2 * k + _SLACK, 2**31 - 1)
        with self._connection() as connection:
            connection.execute(text(f"SET LOCAL hnsw.ef_search = {min(max(wanted, _EF), _EF_MOST)}"))
            connection.execute(text("SET LOCAL hnsw.iterative_scan = relaxed_order"))
            found = connection.execute(nearest, {"query": table.literal(query), "wanted": wanted}).all()
        hits = [Hit(memory_id, float(np.clip(similarity, -1.0, 1.0))) for memory_id, similarity in found]
        hits.sort(key=lambda hit: (-hit.similarity, hit.memory_id))
        return hits[:k]

    def ids(self, namespace: str, kind: KeyKind) -> set[str]:
        table = self._find(namespace, kind)
        if table is None:
            return set()
        with self._connection() as connection:
            return set(connection.scalars(text(f"SELECT id FROM elm_index.{table.name}")))

    def scrub(self, namespace: str) -> bool:
        """Write the tables and graphs of the namespace into new files, without what was deleted. The write-ahead
        log is the database's own. A vacuum would keep what an older transaction, such as a backup's, may still see.
        """
        for kind in KeyKind:
            if (table := self._find(namespace, kind)) is not None:
                with self._connection() as connection:
                    for statement in _anew(table):
                        connection.execute(text(statement))
        return False

    def wipe(self) -> None:
        with self._alone(), self._connection() as connection:
            connection.execute(text("DROP SCHEMA IF EXISTS elm_index CASCADE"))

    def close(self) -> None:
        """Nothing: the connections are the database's."""

    def _find(self, namespace: str, kind: KeyKind) -> _Table | None:
        query = "SELECT name, width, stored_width, seed FROM elm_index.tables WHERE namespace = :ns AND kind = :kind"
        with self._connection() as connection:
            if connection.scalar(text("SELECT to_regclass('elm_index.tables')")) is None:
                return None
            row = connection.execute(text(query), {"ns": namespace, "kind": kind.value}).first()
        return _Table(row[0], row[1], row[2], row[3]) if row is not None else None

    def _make(self, namespace: str, kind: KeyKind, width: int) -> _Table:
        wide = width > _HALF
        digest = hashlib.sha256(namespace.encode("utf-8")).hexdigest()[:40]
        table = _Table(
            f"k{digest}_{kind.value}",
            width,
            projection.WIDTH if wide else width,
            projection.SEED if wide else None,
        )
        values = {"ns": namespace, "kind": kind.value, "name": table.name, "width": width}
        with self._alone(), self._connection() as connection:
            self._prepare(connection)
            connection.execute(
                text(
                    "INSERT INTO elm_index.tables (namespace, kind, name, width, stored_width, seed) "
                    "VALUES (:ns, :kind, :name, :width, :stored, :seed) ON CONFLICT DO NOTHING"
                ),
                values | {"stored": table.stored, "seed": table.seed},
            )
            connection.execute(
                text(
                    f"CREATE TABLE IF NOT EXISTS elm_index.{table.name} "
                    f'(id text COLLATE "C" PRIMARY KEY, key {table.type}({table.stored}) NOT NULL)'
                )
            )
            connection.execute(text(_no_statistics(table)))
            connection.execute(text(_graph(table)))
        return self._find(namespace, kind) or table

    def _prepare(self, connection: Connection) -> None:
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS elm_index"))
        connection.execute(text(_REGISTRY))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two that create the same thing at once would fail on the database's own catalogue."""
        with only_one(self._database, "index/pgvector/tables", seconds=60.0):
            yield

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        try:
            with self._database.engine.connect() as connection, connection.begin():
                yield connection
        except SQLAlchemyError as error:
            raise IndexUnavailable(
                f"pgvector in {self._database.where} failed: {explain(error, self._database.where)}; the extension "
                "`vector` (0.8 or newer) has to be installed on the server"
            ) from error


def _graph(table: _Table) -> str:
    return (
        f"CREATE INDEX IF NOT EXISTS {table.name}_hnsw ON elm_index.{table.name} "
        f"USING hnsw (key {table.type}_cosine_ops) WITH (m = 16, ef_construction = 128)"
    )


def _no_statistics(table: _Table) -> str:
    """The planner's statistics would hold keys, and go on holding those that were deleted."""
    return f"ALTER TABLE elm_index.{table.name} ALTER COLUMN key SET STATISTICS 0"


def _anew(table: _Table) -> tuple[str, ...]:
    """Statements of one transaction: a table emptied by TRUNCATE begins in a file that has never held a row."""
    return (
        f"LOCK TABLE elm_index.{table.name} IN ACCESS EXCLUSIVE MODE",
        f"CREATE TEMPORARY TABLE kept ON COMMIT DROP AS SELECT id, key FROM elm_index.{table.name}",
        f"TRUNCATE elm_index.{table.name}",
        f"DROP INDEX IF EXISTS elm_index.{table.name}_hnsw",
        f"INSERT INTO elm_index.{table.name} (id, key) SELECT id, key FROM kept",
        _graph(table),
    )
