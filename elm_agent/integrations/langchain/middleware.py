"""Memory for an agent of ``create_agent``: its final answers are given twice, and the better one is kept.

What is retrieved, compared, routed and learnt is the graph's: the same functions, with the agent's model call in the
place of the two rows. Knows messages and the graph's functions; knows nothing of stores.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, NotRequired

from langchain.agents.middleware import (
    AgentMiddleware,
    AgentState,
    ExtendedModelResponse,
    ModelRequest,
    ModelResponse,
)
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.runnables.config import ContextThreadPoolExecutor
from langgraph.runtime import Runtime as GraphRuntime
from langgraph.types import Command

from elm_agent.errors import InputError
from elm_agent.integrations.langchain.chat import ChatELM
from elm_agent.integrations.langchain.turns import Turn, begin_turn, end_turn, final_answer
from elm_agent.integrations.langgraph import nodes
from elm_agent.integrations.langgraph.lazy import shared_runtime
from elm_agent.integrations.langgraph.state import RunContext
from elm_agent.integrations.langgraph.watching import tell_left, watched
from elm_agent.memory.answering import check_question
from elm_agent.runtime import Runtime

logger = logging.getLogger(__name__)

Response = ModelResponse[Any]
Result = Response | ExtendedModelResponse[Any]


class ElmState(AgentState[Any]):
    """The state of an agent with memory: beside its messages, what is to be noted and learnt after this run."""

    elm_turn: NotRequired[Annotated[Turn | None, PrivateStateAttr]]


def last_human_text(messages: Sequence[AnyMessage]) -> str | None:
    """The text of the last human message: what a memory is looked up for, and learnt from."""
    return next((message.text for message in reversed(messages) if isinstance(message, HumanMessage)), None)


class ElmMemoryMiddleware(AgentMiddleware[ElmState, Any, Any]):
    """Gives an agent on ``ChatELM`` memories: recalled before a final answer, learnt from after the run.

    Where a memory is near, the answer is generated with it and without it at once, both hidden from message streams;
    the one that the verifier prefers is returned, its ``response_metadata`` with ``route``, ``memory_id``,
    ``memory_namespace``, ``similarity``, ``reason`` and ``use_id``. Where none is near, the answer streams as ever.
    Calls of tools and structured responses are left as they are. With another model than ``ChatELM`` the agent
    answers as without this, and one warning is logged. A failure of memory never costs an answer.

    Args:
        runtime: that of the agent's ``ChatELM``, or a function that opens it; by default the process's
            ``shared_runtime``, which is also the model's default.
        question: what of the messages a memory is looked up for and learnt from; None leaves the call alone.
        namespace, learn, min_similarity, exclude_same_question: options of a run whose context does not have them;
            see ``RunContext``. None: as the settings say.
    """

    state_schema = ElmState

    def __init__(
        self,
        runtime: Runtime | Callable[[], Runtime] = shared_runtime,
        *,
        question: Callable[[Sequence[AnyMessage]], str | None] = last_human_text,
        namespace: str | None = None,
        learn: bool | None = None,
        min_similarity: float | None = None,
        exclude_same_question: bool | None = None,
    ) -> None:
        super().__init__()
        self._runtime = runtime
        self._question = question
        options = {
            "namespace": namespace,
            "learn": learn,
            "min_similarity": min_similarity,
            "exclude_same_question": exclude_same_question,
        }
        self._options = RunContext(**{key: value for key, value in options.items() if value is not None})  # type: ignore[typeddict-item]
        self._warned = False

    def open_runtime(self) -> Runtime:
        """The runtime, which is opened if a function was given."""
        return self._runtime() if callable(self._runtime) else self._runtime

    # --- sync ----------------------------------------------------------------------------------------------

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Response]) -> Result:
        turn = self._begin(request)
        if turn is None:
            return handler(request)
        if turn["memory_id"] is None or turn["memory_failed"]:
            with self._answering(turn):
                plain = handler(request)
            return self._end(turn, plain, None)
        plain_request, memory_request, memory_model = _candidates(request, turn)
        pool = ContextThreadPoolExecutor(1)
        memory = pool.submit(handler, memory_request)
        try:
            with self._answering(turn):
                plain = handler(plain_request)
            if final_answer(plain) is None:
                return self._end(turn, plain, None)
            try:
                return self._end(turn, plain, memory.result())
            except Exception as error:  # noqa: BLE001 - recorded as the reason
                return self._end(turn, plain, error)
        finally:
            memory_model.give_up()
            pool.shutdown(wait=False, cancel_futures=True)

    def after_agent(self, state: ElmState, runtime: GraphRuntime[Any]) -> dict[str, Any] | None:
        """Note the use and queue the learning: a few milliseconds, unless the settings say to learn inline."""
        del runtime
        turn = state.get("elm_turn")
        if turn is None:
            return None
        with watched(self.open_runtime(), "consolidate", turn) as done:
            done(nodes.consolidate(self.open_runtime(), turn))
        return {"elm_turn": None}

    # --- async ---------------------------------------------------------------------------------------------

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Response]]
    ) -> Result:
        turn = await asyncio.to_thread(self._begin, request)
        if turn is None:
            return await handler(request)
        if turn["memory_id"] is None or turn["memory_failed"]:
            with self._answering(turn):
                plain = await handler(request)
            return await asyncio.to_thread(self._end, turn, plain, None)
        plain_request, memory_request, _ = _candidates(request, turn)
        memory = asyncio.ensure_future(handler(memory_request))
        try:
            with self._answering(turn):
                plain = await handler(plain_request)
            if final_answer(plain) is None:
                return self._end(turn, plain, None)
            outcome: Response | Exception
            try:
                outcome = await memory
            except Exception as error:  # noqa: BLE001 - recorded as the reason
                outcome = error
            return await asyncio.to_thread(self._end, turn, plain, outcome)
        finally:
            memory.cancel()
            await asyncio.gather(memory, return_exceptions=True)

    async def aafter_agent(self, state: ElmState, runtime: GraphRuntime[Any]) -> dict[str, Any] | None:
        """``after_agent`` off the event loop."""
        return await asyncio.to_thread(self.after_agent, state, runtime)

    # --- parts ---------------------------------------------------------------------------------------------

    def _begin(self, request: ModelRequest[Any]) -> Turn | None:
        """What is known before the model is called; None where this call is not ours."""
        model = request.model
        if not isinstance(model, ChatELM):
            self._warn(type(model).__name__)
            return None
        if model.memory_id is not None:
            return None  # the agent's owner has chosen one
        question = self._question(request.messages)
        try:
            question = None if question is None else check_question(question)
        except InputError as error:
            logger.info("this question has no memory: %s", error)
            return None
        if question is None:
            return None
        runtime = self.open_runtime()
        if model.open_runtime() is not runtime:
            raise InputError(
                "the agent's ChatELM is on another runtime than its ElmMemoryMiddleware: give both the same, "
                "or none to both"
            )
        return begin_turn(runtime, question, self._options)

    def _end(self, turn: Turn, plain: Response, memory: Response | Exception | None) -> Result:
        ended = None
        if final_answer(plain) is not None:
            ended = end_turn(self.open_runtime(), turn, plain, memory)
        if ended is None:
            tell_left(self.open_runtime(), turn)
            return plain
        chosen, update = ended
        return ExtendedModelResponse(model_response=chosen, command=Command(update={"elm_turn": update}))

    def _answering(self, turn: Turn) -> AbstractContextManager[object]:
        """Around the agent's own model call: an observer is told if it fails."""
        return watched(self.open_runtime(), "generate_zero_shot", turn)

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s takes no memories, which are made for one local model: its answers are left as they are; "
                "use ChatELM to have them with memory",
                what,
            )


def _candidates(request: ModelRequest[Any], turn: Turn) -> tuple[ModelRequest[Any], ModelRequest[Any], ChatELM]:
    """Both requests, hidden from message streams, and the model that answers with the memory."""
    model = request.model
    assert isinstance(model, ChatELM)
    with_memory = model.aside(memory_id=turn["memory_id"], memory_namespace=turn["memory_namespace"])
    return request.override(model=model.aside()), request.override(model=with_memory), with_memory
