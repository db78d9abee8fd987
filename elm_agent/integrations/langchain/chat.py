"""``ChatELM``: the engine of a runtime as a LangChain chat model, with a memory where one is named.

Answers once, as it is asked; which memory to use, and which of two answers to return, is the middleware's to say.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel, agenerate_from_stream, generate_from_stream
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.constants import TAG_NOSTREAM
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr

from elm_agent.errors import InputError
from elm_agent.integrations.langchain.asking import Asked, Asking
from elm_agent.integrations.langchain.messages import to_template
from elm_agent.integrations.langchain.rows import Row
from elm_agent.integrations.langgraph.lazy import shared_runtime
from elm_agent.runtime import Runtime

_UNFORCED = (None, False, "auto", "none")
_OPTIONS = ("max_tokens", "temperature", "seed", "timeout", "memory_id", "memory_namespace")
_SAID_TO_ALL = {"model", "parallel_tool_calls", "stream", "ls_structured_output_format", "structured_output_format"}
"""What code that knows no model says to every one of them; ``model``: a runtime has one."""


class ChatELM(BaseChatModel):
    """The local model of a runtime, for chains and agents. Sync, async and streaming; safe from any thread.

    ``response_metadata`` of an answer has ``memory_id``, ``memory_namespace`` and ``route`` (``memory`` where one was
    bound, else ``no_memory``), ``finish_reason`` (``stop``, ``length`` or ``tool_calls``), ``model_name``, and
    ``mean_logprob`` and ``self_certainty``, up to the token that completed a stop sequence where one cut the answer
    off; None where the engine scores only whole answers (vLLM).
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    runtime: Any = Field(default=shared_runtime, exclude=True, repr=False)
    """An open ``Runtime``, or a function that opens one at first use; by default the process's ``shared_runtime``."""
    memory_id: str | None = None
    """A memory that every answer is generated with; see also ``bind(memory_id=...)``."""
    memory_namespace: str | None = None
    """Where it lives; None: in the runtime's namespace, or one that is shared with it."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most new tokens; None: ``max_new_tokens`` of the settings."""
    temperature: float = Field(default=0.0, ge=0)
    """0: greedy."""
    seed: int | None = None
    """Of the sampling; the same seed gives the same text. None: a new one for each answer."""
    stop: list[str] | None = None
    """Sequences that end an answer and do not belong to it."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds after which an answer is given up with a ``TimeoutError``; None: never."""
    streaming: bool = False
    """Whether a whole answer is also drawn piece by piece, for callbacks that want its tokens."""
    max_retries: int = 0
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """These two are taken and not used, since code that makes models of any provider gives them."""

    _rows: set[Row] = PrivateAttr(default_factory=set)
    _given_up: bool = PrivateAttr(default=False)
    _asking: Asking | None = PrivateAttr(default=None)

    @property
    def _llm_type(self) -> str:
        return "elm"

    def open_runtime(self) -> Runtime:
        """The runtime, which is opened if a function was given."""
        opened: Runtime = self.runtime if isinstance(self.runtime, Runtime) else self.runtime()
        return opened

    def aside(self, **changes: Any) -> ChatELM:
        """A copy whose answers no message stream shows, with other fields: for candidates."""
        copy = self.model_copy(update={"tags": [*(self.tags or []), TAG_NOSTREAM], **changes})
        copy._rows = set()
        return copy

    def give_up(self) -> None:
        """Stop every answer of this object, now and later; whoever waits for one gets a ``CancelledError``."""
        self._given_up = True
        for row in list(self._rows):
            row.close()

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools, in the form that the model's chat template defines; see ``models.toolcalls``.

        ``tool_choice``: ``"any"`` or a tool's name makes the answer begin with a call, so that the model has to go
        on with it; ``"none"`` leaves the tools out. A template without a place for tools is told at the first call.

        Raises:
            InputError: ``tool_choice`` names no tool.
        """
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        names = [schema["function"]["name"] for schema in schemas]
        choice = _chosen(tool_choice)
        if choice not in (*_UNFORCED, "any", *names):
            raise InputError(f"tool_choice {choice!r:.80} is none of the tools: expected one of {', '.join(names)}")
        if choice == "none":
            return self.bind(**kwargs)
        return self.bind(tools=schemas, tool_choice=choice or None, **kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """As the model's own tokenizer has it."""
        return self._made().token_ids(text)

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of the whole prompt, template and all."""
        schemas = [convert_to_openai_tool(tool) for tool in tools or ()]
        return len(self._made().encode(to_template(messages), schemas))

    # --- one answer ----------------------------------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager
        if stop or self.stop:
            return generate_from_stream(self._stream(messages, stop, **kwargs))
        asked = self._ask(messages, stop, kwargs)
        with self._row(asked, pieces=False) as row:
            return asked.result(row.result())

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager
        if stop or self.stop:
            return await agenerate_from_stream(self._astream(messages, stop, **kwargs))
        asked = await asyncio.to_thread(self._ask, messages, stop, kwargs)
        with self._row(asked, pieces=False) as row:
            return asked.result(await row.aresult())

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        del run_manager
        asked = self._ask(messages, stop, kwargs)
        writing = asked.writing()
        with self._row(asked, pieces=True) as row:
            while not writing.stopped and (piece := row.piece()) is not None:
                if shown := writing.feed(piece):
                    yield asked.chunk(shown)
            last = asked.last(writing, row.so_far() if writing.stopped else row.result(), row.tokens)
        yield last

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        del run_manager
        asked = await asyncio.to_thread(self._ask, messages, stop, kwargs)
        writing = asked.writing()
        with self._row(asked, pieces=True) as row:
            while not writing.stopped and (piece := await row.apiece()) is not None:
                if shown := writing.feed(piece):
                    yield asked.chunk(shown)
            last = asked.last(writing, row.so_far() if writing.stopped else await row.aresult(), row.tokens)
        yield last

    # --- parts ---------------------------------------------------------------------------------------------

    def _made(self) -> Asking:
        if self._asking is None:
            self._asking = Asking(self.open_runtime())
        return self._asking

    def _ask(self, messages: Sequence[BaseMessage], stop: Sequence[str] | None, kwargs: dict[str, Any]) -> Asked:
        options = {name: getattr(self, name) for name in _OPTIONS} | {"tools": (), "tool_choice": None}
        given = {name: value for name, value in kwargs.items() if name not in _SAID_TO_ALL}
        if unknown := sorted(given.keys() - options.keys()):
            raise InputError(f"a call of ChatELM has no option {', '.join(unknown)}: see the fields of the class")
        options |= given
        if options["seed"] is None:
            options["seed"] = secrets.randbits(48)
        chosen = stop if stop is not None else self.stop
        return self._made().ask(to_template(messages), stop=tuple(chosen or ()), **options)

    @contextmanager
    def _row(self, asked: Asked, *, pieces: bool) -> Iterator[Row]:
        """A row that is given up when the block is left, and by ``give_up``."""
        if self._given_up:
            raise CancelledError("this answer was given up")
        row = Row(self._made().model, asked.request, pieces=pieces, timeout=asked.timeout)
        self._rows.add(row)
        try:
            if self._given_up:  # meanwhile
                row.close()
            yield row
        finally:
            self._rows.discard(row)
            row.close()

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "elm"
        if "ls_model_name" not in params:
            params["ls_model_name"] = self._made().model.fingerprint.name
        memory_id = kwargs.get("memory_id", self.memory_id)
        return params if memory_id is None else {**params, "elm_memory_id": memory_id}  # type: ignore[typeddict-unknown-key]

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.model_dump(include={*_OPTIONS, "stop"})


def _chosen(tool_choice: str | dict[str, Any] | bool | None) -> Any:
    """``tool_choice`` in the forms that other providers take, as None, "auto", "none", "any" or a name."""
    if isinstance(tool_choice, dict):
        tool_choice = tool_choice.get("function", tool_choice).get("name", "any")
    return "any" if tool_choice in (True, "required") else tool_choice
