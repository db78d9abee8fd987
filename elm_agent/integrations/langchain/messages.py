"""LangChain's messages as chat templates know them, and what a model wrote as parts of a message."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    InvalidToolCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
)

from elm_agent.errors import InputError
from elm_agent.models.toolcalls import Reading

_SILENT = {"tool_call", "tool_use", "invalid_tool_call", "function_call", "reasoning", "thinking"}
"""Blocks of an answer that are told elsewhere in its message, or not at all."""


def to_template(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The messages in the form of chat templates. Raises ``InputError`` for one that is not text."""
    return [_plain(message) for message in messages]


def _plain(message: BaseMessage) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": _role(message), "content": _text(message)}
    if isinstance(message, AIMessage) and message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call["id"] or new_call_id(),
                "type": "function",
                "function": {"name": call["name"], "arguments": call["args"]},
            }
            for call in message.tool_calls
        ]
    if isinstance(message, ToolMessage):
        plain |= {"tool_call_id": message.tool_call_id, "name": message.name or ""}
    return plain


def _role(message: BaseMessage) -> str:
    match message:
        case HumanMessage():
            return "user"
        case AIMessage():
            return "assistant"
        case SystemMessage():
            return "system"
        case ToolMessage():
            return "tool"
        case ChatMessage():
            return message.role
    raise InputError(f"a message of type {message.type!r} has no role here: expected human, ai, system, tool or chat")


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    texts = []
    for block in message.content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") in ("text", "text-plain"):
            texts.append(str(block.get("text", "")))
        elif block.get("type") not in _SILENT:
            raise InputError(
                f"a message holds a part of type {str(block.get('type'))[:40]!r}, and the model reads text only: "
                "leave the part out"
            )
    return "".join(texts)


def new_call_id() -> str:
    """Nine letters and digits, which the strictest templates ask for."""
    return uuid.uuid4().hex[:9]


def tool_calls(reading: Reading) -> list[ToolCall]:
    return [
        ToolCall(name=call.name, args=call.arguments, id=new_call_id(), type="tool_call") for call in reading.calls
    ]


def invalid_tool_calls(reading: Reading) -> list[InvalidToolCall]:
    return [
        InvalidToolCall(
            type="invalid_tool_call", id=new_call_id(), name=None, args=text, error="this is no JSON of a call"
        )
        for text in reading.broken
    ]
