"""From a chat to a request of the engine, and from a generation to a message with all that is known of it.

Knows a runtime's model and bank; knows nothing of threads, loops or callbacks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from elm_agent.errors import InputError, ModelMismatch, NotFound
from elm_agent.integrations.langchain.messages import invalid_tool_calls, tool_calls
from elm_agent.integrations.langchain.writing import Writing
from elm_agent.models.toolcalls import Reading, ToolFormat
from elm_agent.protocols import GenerationRequest, LanguageModel
from elm_agent.records import Generation, Route
from elm_agent.runtime import Runtime

if TYPE_CHECKING:
    from elm_agent.models.templates import ChatTemplate


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One answer to come: what is asked of the engine, and how its text is to be read."""

    request: GenerationRequest
    stop: tuple[str, ...]
    timeout: float | None
    tools: ToolFormat | None
    begin: str
    model_name: str
    memory_id: str | None
    memory_namespace: str | None

    def writing(self) -> Writing:
        return Writing(stop=self.stop, tools=self.tools, begin=self.begin)

    def result(self, generation: Generation) -> ChatResult:
        """The message of a generation that nothing cut off."""
        writing = self.writing()
        shown, rest = writing.feed(generation.text), writing.end()
        message = AIMessage(
            content=shown + _with_broken(rest),
            tool_calls=tool_calls(rest),
            invalid_tool_calls=invalid_tool_calls(rest),
            usage_metadata=self._usage(len(generation.token_ids)),
            response_metadata=self._metadata(generation, rest),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def chunk(self, text: str) -> ChatGenerationChunk:
        return ChatGenerationChunk(message=AIMessageChunk(content=text))

    def last(self, writing: Writing, generation: Generation | None, tokens: int) -> ChatGenerationChunk:
        """The last chunk, with what was kept back and all metadata; ``generation`` None: cut off, without scores."""
        rest = writing.end()
        drawn = tokens if generation is None else len(generation.token_ids)
        message = AIMessageChunk(
            content=_with_broken(rest),
            tool_call_chunks=[
                tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=index)
                for index, call in enumerate(tool_calls(rest))
            ],
            usage_metadata=self._usage(drawn),
            response_metadata=self._metadata(generation, rest),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)

    def _usage(self, drawn: int) -> UsageMetadata:
        read = len(self.request.prompt_ids)
        return UsageMetadata(input_tokens=read, output_tokens=drawn, total_tokens=read + drawn)

    def _metadata(self, generation: Generation | None, rest: Reading) -> dict[str, Any]:
        ended = generation is None or generation.finished
        return {
            "model_name": self.model_name,
            "model_provider": "elm",
            "memory_id": self.memory_id,
            "memory_namespace": self.memory_namespace,
            "route": (Route.NO_MEMORY if self.memory_id is None else Route.MEMORY).value,
            "finish_reason": "tool_calls" if rest.calls else "stop" if ended else "length",
            "mean_logprob": None if generation is None else generation.mean_logprob,
            "self_certainty": None if generation is None else generation.self_certainty,
            "seconds": None if generation is None else generation.seconds,
        }


class Asking:
    """Makes requests for one runtime's model."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    @property
    def model(self) -> LanguageModel:
        return self.runtime.model

    @cached_property
    def template(self) -> ChatTemplate | None:
        """None for a model object without a tokenizer, which writes its chats itself."""
        from elm_agent.models.templates import ChatTemplate

        tokenizer = getattr(self.model, "tokenizer", None)
        return None if tokenizer is None else ChatTemplate(tokenizer, self.model.fingerprint.name)

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stop: tuple[str, ...],
        max_tokens: int | None,
        temperature: float,
        seed: int,
        timeout: float | None,
        memory_id: str | None,
        memory_namespace: str | None,
        tools: Sequence[Mapping[str, Any]],
        tool_choice: str | None,
    ) -> Asked:
        """Raises ``InputError`` for a chat that cannot be asked, ``NotFound`` for a memory that is not there."""
        begin = self._begin(tools, tool_choice)
        namespace = None if memory_id is None else self._home(memory_id, memory_namespace)
        prefix = None
        if memory_id is not None and namespace is not None:
            prefix = self.runtime.bank.prompt(namespace, memory_id)
        return Asked(
            request=GenerationRequest(
                prompt_ids=self.encode(messages, tools, begin),
                prefix=prefix,
                max_new_tokens=max_tokens or self.runtime.settings.max_new_tokens,
                temperature=temperature,
                seed=seed,
            ),
            stop=stop,
            timeout=timeout,
            tools=self.template.tool_format if tools and self.template is not None else None,
            begin=self.template.visible(begin) if begin and self.template is not None else "",
            model_name=self.model.fingerprint.name,
            memory_id=memory_id,
            memory_namespace=namespace,
        )

    def encode(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = (), begin: str = ""
    ) -> tuple[int, ...]:
        """Token ids of a chat. Raises ``InputError``."""
        if not messages:
            raise InputError("a chat without messages cannot be answered: expected at least one")
        if self.template is not None:
            return self.template.encode(messages, tools=tools, begin=begin)
        if tools:
            raise InputError(f"model {self.model.fingerprint.name!r} takes no tools: leave them out")
        return self.model.encode([{"role": m["role"], "content": m["content"]} for m in messages])

    def token_ids(self, text: str) -> list[int]:
        """Raises ``InputError`` for a model object without a tokenizer."""
        if self.template is None:
            raise InputError(f"model {self.model.fingerprint.name!r} has no tokenizer of its own: give it one")
        return self.template.ids(text)

    def _begin(self, tools: Sequence[Mapping[str, Any]], tool_choice: str | None) -> str:
        """What the answer is made to begin with."""
        form = self.template.tool_format if tools and self.template is not None else None
        if form is None or tool_choice in (None, "auto"):
            return ""
        names = [str(tool["function"]["name"]) for tool in tools]
        name = tool_choice if tool_choice in names else names[0] if len(names) == 1 else None
        return form.begin(name)

    def _home(self, memory_id: str, namespace: str | None) -> str:
        """The namespace of a memory that this model may use."""
        bank, own = self.runtime.bank, self.runtime.settings.namespace
        names = (own, *self.runtime.shared(own)) if namespace is None else (namespace,)
        for name in names:
            try:
                made_for = bank.memory(name, memory_id).model
            except NotFound:
                continue
            if made_for.id != self.model.fingerprint.id:
                raise ModelMismatch(
                    f"memory {memory_id} was made for model {made_for.name!r}, this is "
                    f"{self.model.fingerprint.name!r}: memories fit one model only"
                )
            return name
        raise NotFound(
            f"memory {memory_id!r:.80} is not in {' or '.join(map(repr, names))}: `elm-agent memories list` shows "
            "what is, and `memory_namespace` says where to look"
        )


def _with_broken(rest: Reading) -> str:
    """Words, and calls that nobody could read, so that they can be seen."""
    return rest.content + "".join(rest.broken)
