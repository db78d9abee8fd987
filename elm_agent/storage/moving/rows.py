"""Rows of one database brought into another, table by table: by key, in pages, only what differs. Knows no memory.

There is no cursor to lose: every pass compares both sides and writes the difference, so whoever was killed begins
anew and finds little to do. Each page is a short read, for a long one would stop the writers of an SQLite file.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Table, and_, bindparam, delete, func, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from elm_agent.errors import StorageError
from elm_agent.storage.sql.database import Database
from elm_agent.storage.sql.schema import Base, NamespaceRow, WatermarkRow

PAGE = 500
_NAMESPACES = NamespaceRow.__tablename__

TABLES: tuple[Table, ...] = tuple(
    table for table in Base.metadata.sorted_tables if table.name != WatermarkRow.__tablename__
)
"""Parents before children. How far an index has come is the other side's own business."""

Read = Callable[[], AbstractContextManager[Session]]
Row = dict[str, Any]
Key = tuple[Any, ...]
Paged = Callable[[str, int], None]
"""``paged(table, rows)``: so many rows of the table were looked at."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How many rows, and the sum of their digests modulo 2**256: equal for equal rows in whatever order."""

    rows: int = 0
    digests: int = 0

    def with_row(self, row: Row) -> Tally:
        digest = hashlib.sha256(_canonical(row).encode("utf-8", "surrogatepass")).digest()
        return Tally(self.rows + 1, (self.digests + int.from_bytes(digest, "big")) % 2**256)

    def __str__(self) -> str:
        return f"sum-sha256:{self.digests:064x}"


Tallies = dict[tuple[str, str], Tally]
"""By (table, namespace)."""


class RowCopy:
    """Makes the rows of ``names`` in ``target`` what they are in the source.

    ``moved_to`` of a copied namespace is ``mark``: the target takes no changes of its own before it is complete.
    """

    def __init__(self, target: Database, names: Collection[str], *, mark: str, paged: Paged) -> None:
        self._target = target
        self._names = frozenset(names)
        self._mark = mark
        self._paged = paged

    def once(self, read: Read, *, strict: bool) -> tuple[int, Tallies]:
        """One pass; how many rows were written or deleted, and what the source has.

        ``strict``: nothing changes at the source meanwhile, so no row may be refused, every row is compared value by
        value when it was written, and the source is tallied. Otherwise a row whose parent came after the parents'
        turn, or went before it, is left to the next pass.

        Raises:
            StorageError: the target does not give back what was written into it.
        """
        changed = sum(self._remove_surplus(read, table, strict=strict) for table in reversed(TABLES))
        tallies: Tallies = defaultdict(Tally)
        for table in TABLES:
            for page in pages(read, table):
                rows = [self._marked(table, row) for row in page if row[_owner(table).name] in self._names]
                written = self._bring(table, rows, strict=strict)
                if strict and written and self._bring(table, rows, strict=True):
                    raise StorageError(
                        f"the copy is not what was copied: {table.name} come back from {self._target.where} altered; "
                        "nothing was moved"
                    )
                changed += written
                if strict:
                    _add(tallies, table, rows)
                self._paged(table.name, len(page))
        return changed, dict(tallies)

    def _marked(self, table: Table, row: Row) -> Row:
        return row | {"moved_to": self._mark} if table.name == _NAMESPACES else row

    def _remove_surplus(self, read: Read, table: Table, *, strict: bool) -> int:
        removed, key = 0, _key(table)
        for page in pages(self._target.read, table, only_keys=True):
            keys = [_key_of(table, row) for row in page if row[_owner(table).name] in self._names]
            with read() as session:
                there = set(map(tuple, session.execute(select(*key).where(tuple_(*key).in_(keys)))))
            surplus = [one for one in keys if one not in there]
            if surplus:
                with self._target.write() as session:
                    gone = [delete(table).where(_is(table, one)) for one in surplus]
                    removed += sum(_tried(session, statement, None, strict=strict) for statement in gone)
        return removed

    def _bring(self, table: Table, rows: Sequence[Row], *, strict: bool) -> int:
        key = _key(table)
        wanted = {_key_of(table, row): row for row in rows}
        with self._target.read() as session:
            found = session.execute(select(table).where(tuple_(*key).in_(list(wanted)))).mappings()
            there = {_key_of(table, row): row for row in map(dict, found)}
        new = [row for one, row in wanted.items() if one not in there]
        changed = [row for one, row in wanted.items() if one in there and there[one] != row]
        if not new and not changed:
            return 0
        with self._target.write() as session:
            for row in changed:
                session.execute(update(table).where(_is(table, _key_of(table, row))).values(row))
            written = _tried(session, insert(table), new, strict=strict) if new else 0
            if new and not written:
                written = sum(_tried(session, insert(table), [row], strict=strict) for row in new)
        return written + len(changed)


def pages(read: Read, table: Table, *, only_keys: bool = False) -> Iterator[list[Row]]:
    """The rows of a table in the order of its primary key, each page in a transaction of its own."""
    key = _key(table)
    query = (select(*key) if only_keys else select(table)).order_by(*key).limit(PAGE)
    after = query
    while True:
        with read() as session:
            page = [dict(row) for row in session.execute(after).mappings()]
        if page:
            yield page
        if len(page) < PAGE:
            return
        last = tuple_(
            *(bindparam(None, value, type_=c.type) for c, value in zip(key, _key_of(table, page[-1]), strict=True))
        )
        after = query.where(tuple_(*key) > last)


def counts(read: Read, names: Collection[str]) -> dict[str, int]:
    """How many rows each table has of ``names``."""
    found = {}
    for table in TABLES:
        with read() as session:
            owners = session.execute(select(_owner(table), func.count()).group_by(_owner(table)))
            found[table.name] = sum(count for name, count in owners if name in names)
    return found


def whole(tallies: Tallies) -> Tally:
    """All of them as one."""
    total = Tally()
    for tally in tallies.values():
        total = replace(total, rows=total.rows + tally.rows, digests=(total.digests + tally.digests) % 2**256)
    return total


def _tried(session: Session, statement: Any, values: list[Row] | None, *, strict: bool) -> int:
    """How many rows it was: 0 when the schema refused them and the next pass may bring them."""
    try:
        with session.begin_nested():
            session.execute(statement, values) if values is not None else session.execute(statement)
    except IntegrityError:
        if strict:
            raise
        return 0
    return 1 if values is None else len(values)


def _add(tallies: Tallies, table: Table, rows: Sequence[Row]) -> None:
    owner = _owner(table).name
    for row in rows:
        name = table.name, row[owner]
        tallies[name] = tallies[name].with_row(row)


def _owner(table: Table) -> Column[Any]:
    """The column that names the namespace."""
    return table.c.name if table.name == _NAMESPACES else table.c.namespace


def _key(table: Table) -> list[Column[Any]]:
    return list(table.primary_key.columns)


def _key_of(table: Table, row: Mapping[str, Any]) -> Key:
    return tuple(row[column.name] for column in _key(table))


def _is(table: Table, key: Key) -> Any:
    return and_(*(column == value for column, value in zip(_key(table), key, strict=True)))


def _canonical(row: Row) -> str:
    """The row as text that is the same whatever database it lies in."""
    return json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"no canonical form for a {type(value).__name__}")
