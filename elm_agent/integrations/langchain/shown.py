"""A memory as plain values and as text, for retrievers, tools and stores. Looks only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langgraph.runtime import get_runtime

from elm_agent.errors import NotFound
from elm_agent.integrations.langgraph.state import RunContext, resolve_options
from elm_agent.memory.recall import nearest_memories
from elm_agent.records import Episode, EventRecord, Hit, MemoryRecord, MemoryState
from elm_agent.runtime import Runtime


def memory_values(memory: MemoryRecord) -> dict[str, Any]:
    """What can be shown of a memory, JSON-safe."""
    return {
        "memory_id": memory.id,
        "namespace": memory.namespace,
        "question": memory.question,
        "state": memory.state.value,
        "reason": memory.reason,
        "pinned": memory.pinned,
        "task": memory.task,
        "vote_share": memory.final_vote_share,
        "uses": memory.uses,
        "fixed": memory.fixed,
        "broken": memory.broken,
        "model": memory.model.name,
        "origin": memory.origin,
        "subject": memory.subject,
        "created_at": memory.created_at.isoformat(),
        "updated_at": memory.updated_at.isoformat(),
    }


def namespace_of_run(runtime: Runtime) -> str:
    """What the context says of the run in which this is called, as for the graph; else, or outside one, the settings.

    Raises ``InputError``, ``SettingsError`` for a context that the graph would refuse.
    """
    try:
        run = get_runtime(RunContext)
    except RuntimeError:  # called by itself
        return runtime.settings.namespace
    return runtime.settings.namespace if run is None else resolve_options(run.context, runtime.settings)["namespace"]


def nearest(
    runtime: Runtime,
    question: str,
    *,
    namespace: str,
    k: int,
    min_similarity: float = -1.0,
    shared: Sequence[str] | None = None,
) -> list[tuple[Hit, MemoryRecord]]:
    """The active memories nearest to a question, best first, with the record of each.

    ``shared``: namespaces to look in too; None: all that are shared with this one. A namespace that nothing was
    learnt in yet has none. Raises ``IndexUnavailable``, ``ModelMismatch``.
    """
    try:
        runtime.bank.namespace(namespace)
    except NotFound:
        return []
    runtime.bind(namespace)
    return nearest_memories(
        question,
        bank=runtime.bank,
        model=runtime.model,
        namespace=namespace,
        limit=k,
        shared=runtime.shared(namespace) if shared is None else shared,
        kind=runtime.settings.retrieval.key,
        min_similarity=min_similarity,
    )


def history(memory: MemoryRecord, episode: Episode, events: list[EventRecord]) -> dict[str, Any]:
    """Why a memory is there: what it came from, how its votes went, what it did, what was done to it."""
    return {
        **memory_values(memory),
        "majority_answer": episode.majority_answer,
        "vote_shares": [round(step.vote_share, 4) for step in episode.curve],
        "history": [
            {"what": event.kind.value, "by": event.actor, "at": event.created_at.isoformat()} for event in events
        ],
    }


def is_readable(memory: MemoryRecord) -> bool:
    """Purged memories are tombstones, of which nothing is left to show."""
    return memory.state is not MemoryState.PURGED
