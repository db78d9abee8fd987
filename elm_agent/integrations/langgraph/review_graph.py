"""A graph that asks a person about each memory that waits before it may serve.

Stops at one memory after the other; each answer is one decision of the bank. Generates nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from langchain_core.runnables import Runnable, RunnableLambda
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import get_runtime

from elm_agent.errors import ChangedMeanwhile, InputError, NotFound
from elm_agent.integrations.langgraph.reviewing import Reply, answered, resumable
from elm_agent.integrations.langgraph.state import RunContext, resolve_options
from elm_agent.memory.reviewing import decide
from elm_agent.records import MemoryRecord, Review
from elm_agent.runtime import Runtime

if TYPE_CHECKING:
    from elm_agent.storage.bank import Bank

ACTOR = "graph review"
MemoryChoice = Literal["approve", "reject", "later"]


class MemoryAsked(TypedDict):
    """The value of the interrupt: what was learned from, what came of it, and how sure the votes were. JSON-safe.

    ``votes``: rollouts of the last step by their answer, the most frequent first; those without one are left out.
    ``vote_shares``: of the majority, a number from 0 to 1 for each step.
    """

    kind: Literal["memory"]
    namespace: str
    memory_id: str
    question: str
    answer: str | None
    votes: dict[str, int]
    vote_shares: list[float]
    choices: list[str]


class MemoryDecision(Reply):
    """What resumes the run: ``{"choice": "approve", "note": "..."}``, or the choice alone as a word."""

    choice: MemoryChoice


class MemoryReviewed(TypedDict):
    """What became of one memory. ``outcome``: "approved", "rejected", "later", or why nothing was done."""

    memory_id: str
    outcome: str
    note: str | None


class Reviews(TypedDict, total=False):
    """Output: what was decided in this run, in order."""

    reviewed: list[MemoryReviewed]


class _State(Reviews, total=False):
    namespace: str
    asked: MemoryAsked | None
    revision: int  # of the memory that is asked about, as it was shown


Compiled = CompiledStateGraph[_State, RunContext, _State, Reviews]


def build_review_graph(
    runtime: Runtime | Callable[[], Runtime], *, checkpointer: BaseCheckpointSaver[str] | None = None
) -> Compiled:
    """A compiled graph, sync and async: ``{}`` in, ``Reviews`` out, with an interrupt for each memory that waits.

    The namespace is that of the context or of the settings. Without a checkpointer it inherits that of the graph it
    is a node of; where there is none, and something waits, it raises ``InputError``. What somebody else decides while
    the run stands still is left as it is, and told.
    """
    get = runtime if callable(runtime) else lambda: runtime
    graph = StateGraph(_State, context_schema=RunContext, output_schema=Reviews)
    for name, function in (("begin", _begin), ("next_memory", _next_memory), ("review_memory", _review_memory)):
        graph.add_node(name, _both(function, get, name))
    graph.add_edge(START, "begin").add_edge("begin", "next_memory")
    graph.add_conditional_edges("next_memory", _onward, ["review_memory", END])
    graph.add_edge("review_memory", "next_memory")
    return graph.compile(checkpointer=checkpointer, name="elm_agent_review")


def _begin(runtime: Runtime, _state: _State) -> dict[str, Any]:
    """A thread may still hold the last review: nothing of it counts."""
    options = resolve_options(get_runtime(RunContext).context, runtime.settings)
    return {"namespace": options["namespace"], "asked": None, "reviewed": []}


def _next_memory(runtime: Runtime, state: _State) -> dict[str, Any]:
    """The oldest that waits and was not asked about. Kept in the state: the answer is about what was shown."""
    asked, namespace = state.get("asked"), state["namespace"]
    runtime.bind(namespace)
    last = None if asked is None else asked["memory_id"]
    waiting = runtime.bank.reviews.memories(namespace, after=last, limit=1)
    if not waiting:
        return {"asked": None}
    if not resumable():
        raise InputError(
            f"memories of {namespace!r} wait for a review, and this run cannot stop to ask: "
            "give build_review_graph a checkpointer, or use `elm-agent review`"
        )
    return {"asked": _asked(runtime.bank, waiting[0]), "revision": waiting[0].revision}


def _onward(state: _State) -> str:
    return END if state.get("asked") is None else "review_memory"


def _review_memory(runtime: Runtime, state: _State) -> dict[str, Any]:
    asked = state["asked"]
    assert asked is not None
    decision = answered(asked, MemoryDecision)
    outcome: str = decision.choice
    if decision.choice != "later":
        verdict = Review.APPROVED if decision.choice == "approve" else Review.REJECTED
        which = asked["namespace"], asked["memory_id"], verdict
        try:
            decide(runtime.bank, *which, actor=ACTOR, note=decision.note, expected=state["revision"])
            outcome = verdict.value
        except (ChangedMeanwhile, NotFound, InputError) as error:  # somebody was quicker: the others still wait
            outcome = str(error)
    done = MemoryReviewed(memory_id=asked["memory_id"], outcome=outcome, note=decision.note)
    return {"reviewed": [*state["reviewed"], done]}


def _asked(bank: Bank, memory: MemoryRecord) -> MemoryAsked:
    episode = bank.episode(memory.namespace, memory.id)
    last = max((step.step for step in episode.curve), default=None)
    votes = Counter(one.answer for one in episode.rollouts if one.step == last and one.answer is not None)
    return MemoryAsked(
        kind="memory",
        namespace=memory.namespace,
        memory_id=memory.id,
        question=memory.question,
        answer=episode.majority_answer,
        votes=dict(votes.most_common()),
        vote_shares=[step.vote_share for step in episode.curve],
        choices=list(get_args(MemoryChoice)),
    )


def _both(
    function: Callable[[Runtime, _State], dict[str, Any]], get: Callable[[], Runtime], name: str
) -> Runnable[_State, dict[str, Any]]:
    def run(state: _State) -> dict[str, Any]:
        return function(get(), state)

    async def arun(state: _State) -> dict[str, Any]:
        return await asyncio.to_thread(run, state)

    return RunnableLambda(run, afunc=arun, name=name)
