"""Tells a runtime's observer how long each node of a run took and what came of it. Costs nothing without one.

Texts are not told: ids, numbers and routes alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from elm_agent.integrations.langgraph.state import State
from elm_agent.memory.answering import describe
from elm_agent.protocols import Observer
from elm_agent.runtime import Runtime

logger = logging.getLogger(__name__)

Update = dict[str, Any]
Done = Callable[[Update], Update]

_TOLD = {
    "retrieve_memory": ("answer.retrieved", ("memory_id", "memory_namespace", "similarity", "memory_failed")),
    "generate_with_memory": ("answer.generated", ()),
    "generate_zero_shot": ("answer.generated", ()),
    "verify_and_route": ("answer.routed", ("route",)),
    "consolidate": ("answer.noted", ("use_id", "job_id")),
}


@contextmanager
def watched(runtime: Runtime, node: str, state: State) -> Iterator[Done]:
    """Around a node: what it returns goes through the function that this gives, which tells of it.

    A node that raises, or whose caller gave up, is told as ``answer.failed``.
    """
    tell = runtime.observe
    if tell is None:
        yield _untold
        return
    started = time.perf_counter()

    def done(update: Update) -> Update:
        name, fields = _TOLD[node]
        detail = {field: update[field] for field in fields} | _candidate(update)
        _tell(tell, name, state, update, seconds=time.perf_counter() - started, **detail)
        return update

    try:
        yield done
    except BaseException as error:
        _tell(tell, "answer.failed", state, {}, node=node, reason=describe(error))
        raise


def tell_candidates(runtime: Runtime, state: State, update: Update) -> None:
    """Of candidates in ``update`` that another model's call has generated, with the seconds it says they took."""
    if (tell := runtime.observe) is None:
        return
    for name in ("memory_candidate", "zero_shot_candidate"):
        if (made := update.get(name)) is not None:
            _tell(tell, "answer.generated", state, {}, seconds=made["seconds"], **_candidate({name: made}))
    if update.get("memory_failed"):
        _tell(tell, "answer.generated", state, {}, seconds=0.0, **_candidate({"memory_failed": True}))


def tell_left(runtime: Runtime, state: State) -> None:
    """That there will be no answer of this retrieval, and need not be."""
    if runtime.observe is not None:
        _tell(runtime.observe, "answer.left", state, {})


def _candidate(update: Update) -> dict[str, Any]:
    """Of the candidate that the node has made, if it is one that makes them."""
    for source in ("memory", "zero_shot"):
        made = update.get(f"{source}_candidate")
        if made is not None:
            kept = ("tokens", "finished", "memory_id")
            return {"source": source, "failed": False, **{name: made[name] for name in kept}}
    return {"source": "memory", "failed": True} if update.get("memory_failed") and "options" not in update else {}


def _tell(tell: Observer, name: str, state: State, update: Update, **detail: Any) -> None:
    options = update.get("options") or state.get("options") or {}
    run = {"answer_id": update.get("answer_id") or state.get("answer_id"), "namespace": options.get("namespace")}
    try:
        tell(name, run | detail)
    except Exception as error:  # a broken listener costs no answer
        logger.warning("the observer failed at %r", name, exc_info=error)


def _untold(update: Update) -> Update:
    return update
