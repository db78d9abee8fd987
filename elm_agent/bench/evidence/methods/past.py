"""Past questions and which of them is nearest to a new one; never the new one itself, nor one equal to it.

Knows items and vectors; knows nothing of models, or of what was learned from a question.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from elm_agent.bench.evidence.contract import Item
from elm_agent.records import Vector

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Past(Generic[T]):
    """A past question, its retrieval key (unit length) and what is kept of it."""

    item: Item
    key: Vector = field(repr=False)
    kept: T


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """A past question that was found; ``similarity``: cosine."""

    past: Past[T]
    similarity: float


class PastQuestions(Generic[T]):
    """Past questions in the order in which they were learned from. A question learned again replaces itself."""

    def __init__(self) -> None:
        self._past: dict[str, Past[T]] = {}

    def __len__(self) -> int:
        return len(self._past)

    def add(self, item: Item, key: Vector, kept: T) -> None:
        """Remember a question. ``key``: unit length."""
        self._past[item.id] = Past(item, key, kept)

    def nearest(self, item: Item, query: Vector, count: int = 1) -> list[Found[T]]:
        """At most ``count`` past questions with other words than this one, best first, of equals the earliest."""
        others = [past for past in self._past.values() if past.item.digest != item.digest]
        found = [Found(past, float(past.key @ query)) for past in others]
        return sorted(found, key=lambda one: -one.similarity)[:count]
