"""The nodes of the graph: every one in a sync and an async form, bound to a runtime.

The async forms block no event loop: stores and tokenizers run in threads, generations are awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from langchain_core.runnables import RunnableLambda

from elm_agent.integrations.langgraph import nodes
from elm_agent.integrations.langgraph.nodes import Update
from elm_agent.integrations.langgraph.state import State
from elm_agent.integrations.langgraph.waiting import afinished, begun_row, finished
from elm_agent.integrations.langgraph.watching import watched
from elm_agent.protocols import RowStream
from elm_agent.records import Generation
from elm_agent.runtime import Runtime

Node = RunnableLambda[State, Update]


def make_nodes(runtime: Runtime | Callable[[], Runtime]) -> dict[str, Node]:
    """All nodes by name, bound to ``runtime``; a function is asked for it at every use, off the event loop."""
    get = runtime if callable(runtime) else lambda: runtime
    return {
        "retrieve_memory": _simple(get, nodes.retrieve_memory),
        "generate_with_memory": _generation_with_memory(get),
        "generate_zero_shot": _generation_zero_shot(get),
        "verify_and_route": _simple(get, nodes.verify_and_route),
        "review_override": _review(get),
        "consolidate": _simple(get, nodes.consolidate),
    }


def _simple(get: Callable[[], Runtime], function: Callable[[Runtime, State], Update]) -> Node:
    def run(state: State) -> Update:
        with watched(get(), function.__name__, state) as done:
            return done(function(get(), state))

    async def arun(state: State) -> Update:
        return await asyncio.to_thread(run, state)

    return RunnableLambda(run, afunc=arun, name=function.__name__)


def _review(get: Callable[[], Runtime]) -> Node:
    """Unwatched: a run that waits for a person has not failed, and its time is not the agent's."""

    def run(state: State) -> Update:
        return nodes.review_override(get(), state)

    async def arun(state: State) -> Update:
        return await asyncio.to_thread(run, state)

    return RunnableLambda(run, afunc=arun, name="review_override")


def _generation_zero_shot(get: Callable[[], Runtime]) -> Node:
    def begin(state: State) -> Future[Generation] | RowStream:
        return nodes.begin_zero_shot(get(), state)

    def end(generation: Generation) -> Update:
        return nodes.end_zero_shot(get(), generation)

    def generate(state: State) -> Update:
        with watched(get(), "generate_zero_shot", state) as done:
            return done(end(finished(begin(state), nodes.piece_teller("zero_shot"))))

    async def agenerate(state: State) -> Update:
        with watched(await asyncio.to_thread(get), "generate_zero_shot", state) as done:
            begun = await begun_row(partial(begin, state))
            return done(await asyncio.to_thread(end, await afinished(begun, nodes.piece_teller("zero_shot"))))

    return RunnableLambda(generate, afunc=agenerate, name="generate_zero_shot")


def _generation_with_memory(get: Callable[[], Runtime]) -> Node:
    def begin(state: State) -> Future[Generation] | RowStream:
        return nodes.begin_with_memory(get(), state)

    def end(state: State, generation: Generation) -> Update:
        return nodes.end_with_memory(get(), state, generation)

    def generate(state: State) -> Update:
        with watched(get(), "generate_with_memory", state) as done:
            try:
                return done(end(state, finished(begin(state), nodes.piece_teller("memory"))))
            except Exception as error:  # noqa: BLE001 - recorded as the reason
                return done(nodes.fail_with_memory(state, error))

    async def agenerate(state: State) -> Update:
        with watched(await asyncio.to_thread(get), "generate_with_memory", state) as done:
            try:
                begun = await begun_row(partial(begin, state))
                text = await afinished(begun, nodes.piece_teller("memory"))
                return done(await asyncio.to_thread(end, state, text))
            except Exception as error:  # noqa: BLE001 - recorded as the reason
                return done(nodes.fail_with_memory(state, error))

    return RunnableLambda(generate, afunc=agenerate, name="generate_with_memory")
