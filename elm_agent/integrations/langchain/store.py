"""The bank as a LangGraph store: its namespaces and memories can be listed, read and searched, and nothing put.

Memories come of learning; one can be taken out of service where that was allowed.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Any

from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
)

from elm_agent.errors import InputError, NotFound
from elm_agent.integrations.langchain.shown import is_readable, memory_values, nearest
from elm_agent.integrations.langgraph.lazy import shared_runtime
from elm_agent.memory.answering import check_question
from elm_agent.records import MemoryRecord, MemoryState
from elm_agent.runtime import Runtime

if TYPE_CHECKING:
    from elm_agent.storage.bank import NamespaceInfo

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_CANDIDATES = 1000
"""Most memories that a search with a query looks at: the nearest ones."""
ACTOR = "LangGraph store"


class MemoryBankStore(BaseStore):
    """A bank, read-mostly. Namespace ``("ada",)`` holds the memories of the bank's namespace ``ada``; keys are ids.

    ``search`` with a query finds the nearest active memories of one namespace; without one it goes through all,
    newest first. ``put`` raises ``InputError``, and so does ``delete`` unless ``evicts``.

    Args:
        runtime: an open one, or a function that opens it at first use.
        namespaces: those that the store shows, the others do not exist for it; None: all of the bank.
        evicts: whether ``delete`` evicts a memory. It is used no more, is shown as retired, and can be restored.
    """

    supports_ttl = False

    def __init__(
        self,
        runtime: Runtime | Callable[[], Runtime] = shared_runtime,
        *,
        namespaces: Collection[str] | None = None,
        evicts: bool = False,
    ) -> None:
        self._runtime = runtime
        self._namespaces = None if namespaces is None else frozenset(namespaces)
        self._evicts = evicts

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """All of the operations, in order; none is done if one of them would write what is not allowed."""
        wanted = list(ops)
        for op in wanted:
            if isinstance(op, PutOp) and not (self._evicts and op.value is None):
                raise _refusal(op)
        view = _View(self._runtime() if callable(self._runtime) else self._runtime, self._namespaces)
        return [_done(view, op) for op in wanted]

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        return await asyncio.to_thread(self.batch, ops)


@dataclass(frozen=True, slots=True)
class _View:
    """A runtime, and which namespaces of its bank are shown; None: all."""

    runtime: Runtime
    names: frozenset[str] | None

    def namespaces(self) -> list[NamespaceInfo]:
        return [info for info in self.runtime.bank.namespaces() if self.names is None or info.name in self.names]

    def memory(self, namespace: tuple[str, ...], key: str) -> MemoryRecord | None:
        """None for one that is not there, was purged, or may not be seen."""
        if len(namespace) != 1 or (self.names is not None and namespace[0] not in self.names):
            return None
        try:
            memory = self.runtime.bank.memory(namespace[0], key)
        except NotFound:
            return None
        return memory if is_readable(memory) else None


def _refusal(op: PutOp) -> InputError:
    where = "/".join(op.namespace)
    if op.value is None:
        return InputError(
            f"memory {op.key!r:.80} of {where!r:.80} cannot be deleted through the store: evict it, which can be "
            "undone, with `elm-agent memories evict`, or make the store with evicts=True"
        )
    return InputError(
        f"nothing can be put into {where!r:.80}: memories are written by learning alone; ask a question with "
        "learning on, and use another store for facts"
    )


def _done(view: _View, op: Op) -> Result:
    match op:
        case GetOp():
            memory = view.memory(op.namespace, op.key)
            return None if memory is None else Item(**_item(memory))
        case SearchOp():
            return _search(view, op)
        case ListNamespacesOp():
            return _list_namespaces(view, op)
        case PutOp():
            _evict(view, op)
            return None
    raise InputError(f"a store does not know the operation {type(op).__name__}")


def _evict(view: _View, op: PutOp) -> None:
    """What is not there, or no more in service, is left as it is. Raises ``InputError`` for a pinned memory."""
    memory = view.memory(op.namespace, op.key)
    if memory is not None:
        view.runtime.bank.transition(
            memory.namespace, memory.id, MemoryState.RETIRED, actor=ACTOR, reason="deleted through the store"
        )


def _search(view: _View, op: SearchOp) -> list[SearchItem]:
    runtime = view.runtime
    found = [info for info in view.namespaces() if op.namespace_prefix in ((), (info.name,))]
    items: Iterable[SearchItem]
    if op.query is None:
        items = (SearchItem(**_item(memory)) for info in found for memory in _all(runtime, info.name))
    else:  # memories of other models have no keys that this one could be near to
        names = [info.name for info in found if info.model.id == runtime.model.fingerprint.id]
        items = _nearest(runtime, names, op.query, op)
    fitting = (item for item in items if _fits(item.value, op.filter or {}))
    return list(islice(fitting, op.offset, op.offset + op.limit))


def _all(runtime: Runtime, namespace: str) -> Iterable[MemoryRecord]:
    """Newest first, a page at a time."""
    page, size = 0, 200
    while found := runtime.bank.memories(namespace, limit=size, offset=page * size):
        yield from filter(is_readable, found)
        page += 1


def _nearest(runtime: Runtime, names: list[str], query: str, op: SearchOp) -> list[SearchItem]:
    question, most = check_question(query), min(op.offset + op.limit, _CANDIDATES)
    if op.filter:
        most = _CANDIDATES
    found = [
        SearchItem(**_item(memory), score=hit.similarity)
        for name in names
        for hit, memory in nearest(runtime, question, namespace=name, k=most, shared=())
    ]
    return sorted(found, key=lambda item: (-(item.score or 0.0), item.key))


def _item(memory: MemoryRecord) -> dict[str, Any]:
    return {
        "namespace": (memory.namespace,),
        "key": memory.id,
        "value": memory_values(memory),
        "created_at": memory.created_at,
        "updated_at": memory.updated_at,
    }


def _fits(value: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(_holds(value.get(name), condition) for name, condition in wanted.items())


def _holds(value: Any, condition: Any) -> bool:
    if not isinstance(condition, dict):
        return bool(value == condition)
    for name, other in condition.items():
        if name not in _COMPARISONS:
            raise InputError(f"a filter has no {name!r:.40}: expected one of {', '.join(_COMPARISONS)}")
        try:
            if not _COMPARISONS[name](value, other):
                return False
        except TypeError:
            return False  # a value and one of another type have no order
    return True


def _list_namespaces(view: _View, op: ListNamespacesOp) -> list[tuple[str, ...]]:
    names = sorted(
        info.name
        for info in view.namespaces()
        if all(_matches(info.name, condition) for condition in op.match_conditions or ())
    )
    return [(name,) for name in names[op.offset : op.offset + op.limit]]


def _matches(name: str, condition: MatchCondition) -> bool:
    """Namespaces here are one level deep, so that beginning and end are the same."""
    return not condition.path or (len(condition.path) == 1 and fnmatchcase(name, condition.path[0]))
