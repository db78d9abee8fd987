"""Which columns hold content, and under which key version it lies there. Says what is to be sealed; seals nothing.

Content is what a user or a model wrote: it is sealed, in JSON columns as a whole. What only has to be found by
equality is blinded. All other columns are readable in an encrypted bank (see docs/encryption.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, cast, func, not_, or_, select
from sqlalchemy.orm import Session

from elm_agent.storage.sql.rows import opened_json, sealed_json, sealed_text
from elm_agent.storage.sql.schema import EpisodeRow, EventRow, JobRow, MemoryRow, UseRow
from elm_agent.storage.vault.base import SEALED_TEXT, Vault
from elm_agent.storage.vault.crypto import BLINDED


@dataclass(frozen=True, slots=True)
class SealedTable:
    """One table and its columns of content. ``own``: also holds the bank's own words, which are no content."""

    row: Any
    key: str  # the second column of its primary key, after the namespace
    texts: tuple[str, ...]
    documents: tuple[str, ...] = ()
    blinded: tuple[str, ...] = ()
    own: frozenset[str] = field(default=frozenset())

    def order(self) -> ColumnElement[Any]:
        column: ColumnElement[Any] = getattr(self.row, self.key)
        return column

    def of(self, namespace: str) -> ColumnElement[bool]:
        mine: ColumnElement[bool] = self.row.namespace == namespace
        return mine

    def readable(self) -> ColumnElement[bool]:
        """Whether a row has content that is not sealed or not blinded."""
        content = [name for name in (*self.texts, *self.documents) if name not in self.own]
        return or_(*(not_(self._sealed(name)) for name in content), *self._not_blinded())

    def outdated(self, version: int) -> ColumnElement[bool]:
        """Whether a row has content under another key version."""
        columns = (*self.texts, *self.documents)
        return or_(*(and_(self._sealed(name), not_(self._sealed(name, version))) for name in columns))

    def stale(self, version: int) -> ColumnElement[bool]:
        """Whether anything in a row is not as a new row under ``version`` would be."""
        columns = (*self.texts, *self.documents)
        return or_(*(not_(self._sealed(name, version)) for name in columns), *self._not_blinded())

    def reseal(self, row: Any, vault: Vault, version: int) -> None:
        """Seal anew what is not under ``version``, the vault's newest key, and blind what is not blinded.

        Raises ``StorageError`` when something cannot be opened; the row is then as it was.
        """
        namespace = row.namespace
        fresh: dict[str, Any] = {}
        for name in self.texts:
            if (text := getattr(row, name)) is not None and not text.startswith(f"{SEALED_TEXT}{version}:"):
                fresh[name] = vault.seal(namespace, vault.open(namespace, text))
        for name in self.documents:
            value = getattr(row, name)
            if value and not sealed_text(value).startswith(f"{SEALED_TEXT}{version}:"):
                fresh[name] = sealed_json(vault, namespace, opened_json(vault, namespace, value))
        for name in self.blinded:
            if (text := getattr(row, name)) is not None and not text.startswith(BLINDED):
                fresh[name] = vault.blind(namespace, text)
        for name, value in fresh.items():  # all or nothing
            setattr(row, name, value)

    def _sealed(self, name: str, version: int | None = None) -> ColumnElement[bool]:
        """Whether a column is sealed (by that key version), or there is nothing to seal in it."""
        column, start = getattr(self.row, name), SEALED_TEXT if version is None else f"{SEALED_TEXT}{version}:"
        if name in self.texts:
            return or_(column.is_(None), _begins(column, start))
        document = cast(column, Text)
        sealed = [_begins(document, f'{form}"sealed": "{start}') for form in ("{", "[{")]
        return or_(document.in_(("{}", "[]")), *sealed)

    def _not_blinded(self) -> list[ColumnElement[bool]]:
        columns = [getattr(self.row, name) for name in self.blinded]
        return [and_(column.is_not(None), not_(_begins(column, BLINDED))) for column in columns]


def _begins(column: ColumnElement[str], start: str) -> ColumnElement[bool]:
    """To the letter: LIKE of SQLite takes upper for lower case, and a text of that kind would never be sealed."""
    return func.substr(column, 1, len(start)) == start


EPISODES = SealedTable(EpisodeRow, "id", ("question", "majority_answer"), ("curve", "rollouts"))
MEMORIES = SealedTable(
    MemoryRow, "id", ("question", "reason"), blinded=("question_digest", "subject", "content_digest")
)
JOBS = SealedTable(
    JobRow, "id", ("question", "reason"), ("progress",), ("subject", "idempotency_key"), frozenset({"reason"})
)
USES = SealedTable(
    UseRow,
    "id",
    ("question", "reason", "answer", "memory_answer", "zero_shot_answer", "feedback_answer", "review_note"),
    blinded=("subject",),
)
EVENTS = SealedTable(EventRow, "revision", ("note", "salt"))
TABLES = (EPISODES, MEMORIES, JOBS, USES, EVENTS)


def count(session: Session, namespace: str, version: int | None) -> tuple[int, int]:
    """How many rows of a namespace have readable content, and how many have content under another key version."""
    readable = outdated = 0
    for table in TABLES:
        of = select(func.count()).select_from(table.row).where(table.of(namespace))
        readable += session.scalar(of.where(table.readable())) or 0
        if version is not None:
            outdated += session.scalar(of.where(table.outdated(version))) or 0
    return readable, outdated
