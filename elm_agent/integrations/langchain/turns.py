"""One final answer of an agent with memory, as the graph's state: begun before the model is called, ended after it.

Plain values throughout, so that any checkpointer can keep it. Knows responses and the graph's functions.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from langchain_core.messages import AIMessage

from elm_agent.integrations.langgraph import nodes
from elm_agent.integrations.langgraph.state import RunContext, State
from elm_agent.integrations.langgraph.watching import tell_candidates, watched
from elm_agent.records import Candidate, Route
from elm_agent.runtime import Runtime

if TYPE_CHECKING:
    from langchain.agents.middleware import ModelResponse

logger = logging.getLogger(__name__)

Turn = State

_SHOWN = {"route", "memory_id", "memory_namespace", "similarity", "reason", "use_id", "explanation"}


def begin_turn(runtime: Runtime, question: str, options: RunContext) -> Turn:
    """Retrieve the memory of ``question``. Raises ``InputError`` for a context that is unusable."""
    asked = cast(State, {"question": question})
    with watched(runtime, "retrieve_memory", asked) as done:
        return cast(State, {**asked, **done(nodes.retrieve_memory(runtime, asked, options))})


def final_answer(response: ModelResponse[Any]) -> AIMessage | None:
    """The answer of a response, if it ends the agent's run: no calls of tools, nothing structured."""
    message = response.result[-1] if response.result else None
    if not isinstance(message, AIMessage) or message.tool_calls or message.invalid_tool_calls:
        return None
    return None if response.structured_response is not None else message


def end_turn(
    runtime: Runtime, turn: Turn, plain: ModelResponse[Any], memory: ModelResponse[Any] | Exception | None
) -> tuple[ModelResponse[Any], Turn] | None:
    """The response to return and the turn to consolidate; None where nothing can be said of the plain answer.

    ``memory``: the response with the memory, what it failed with, or None where none was asked for.
    """
    plain_answer = final_answer(plain)
    assert plain_answer is not None
    try:
        update: dict[str, Any] = {"zero_shot_candidate": _candidate(runtime, plain_answer, None)}
    except Exception as error:
        logger.warning("the answer is returned without a look at memory: it cannot be read", exc_info=error)
        return None
    if memory is not None:
        update |= _with_memory(runtime, turn, memory)
    tell_candidates(runtime, turn, update)
    turn = cast(State, {**turn, **update})
    with watched(runtime, "verify_and_route", turn) as done:
        turn = cast(State, {**turn, **done(nodes.verify_and_route(runtime, turn))})
    chosen = plain
    if turn["route"] == Route.MEMORY.value and memory is not None and not isinstance(memory, Exception):
        chosen = memory
    answer = final_answer(chosen)
    assert answer is not None
    answer.response_metadata |= {name: value for name, value in turn.items() if name in _SHOWN}
    return chosen, cast(State, {**turn, "memory_candidate": None, "zero_shot_candidate": None})


def _with_memory(runtime: Runtime, turn: Turn, memory: ModelResponse[Any] | Exception) -> nodes.Update:
    if isinstance(memory, Exception):
        return nodes.fail_with_memory(turn, memory)
    answer = final_answer(memory)
    try:
        if answer is None:
            raise ValueError("it calls a tool where the plain answer is final")
        return {"memory_candidate": _candidate(runtime, answer, turn["memory_id"])}
    except Exception as error:  # noqa: BLE001 - recorded as the reason
        return nodes.fail_with_memory(turn, error)


def _candidate(runtime: Runtime, answer: AIMessage, memory_id: str | None) -> dict[str, Any]:
    """What the verifier is to judge. Raises ``TaskError``, and ``ValueError`` where it has no scores."""
    known, usage = answer.response_metadata, answer.usage_metadata
    if known.get("mean_logprob") is None:
        raise ValueError("the engine has no scores of an answer that a stop sequence cut off")
    made = Candidate(
        text=answer.text,
        answer=runtime.task.extract(answer.text),
        tokens=0 if usage is None else usage["output_tokens"],
        mean_logprob=known["mean_logprob"],
        self_certainty=known["self_certainty"],
        finished=known["finish_reason"] == "stop",
        seconds=known["seconds"],
        memory_id=memory_id,
    )
    nodes.show_candidate("zero_shot" if memory_id is None else "memory", made)
    return asdict(made)
