"""Chats with histories and tools as token ids, through the tokenizer's own template.

Knows tokenizers; knows nothing of networks, rows or agents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from elm_agent.errors import InputError
from elm_agent.models.toolcalls import ChatMessage, ToolFormat, learn_tool_format


class ChatTemplate:
    """Writes chats for one model. Safe from any thread.

    Args:
        tokenizer: without a chat template the messages' contents are joined by blank lines.
        name: of the model, for messages of errors.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name

    def encode(
        self, messages: Sequence[ChatMessage], *, tools: Sequence[Mapping[str, Any]] = (), begin: str = ""
    ) -> tuple[int, ...]:
        """Token ids of a chat with the generation prompt, and ``begin``: the first words of the answer.

        ``tools``: as JSON schemas of functions. Raises ``InputError`` for what the template refuses, or has no
        place for, and for half a character.
        """
        if tools and self.tool_format is None:
            raise InputError(
                f"the chat template of model {self._name!r} has no place for tools, or writes their calls in a form "
                "that is not JSON: leave the tools out, or use a model whose template has (Qwen, Llama 3, Mistral)"
            )
        if not self._tokenizer.chat_template:
            text = "\n\n".join(str(message["content"]) for message in messages) + "\n\n" + begin
            special = True
        else:
            text, special = self._render(messages, tools, True) + begin, False
        refuse_half_characters(text, "a message")
        return tuple(self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def visible(self, text: str) -> str:
        """What of ``text`` is seen in the text of a generation: special tokens are not."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def ids(self, text: str) -> list[int]:
        """Token ids of plain text, for counting."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How calls of tools are written; None where the template has no place for them."""
        if not self._tokenizer.chat_template:
            return None
        try:
            return learn_tool_format(self._render, self.visible)
        except InputError:
            return None  # it refuses the messages of the probe, so it writes no calls

    def _render(
        self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]], generation_prompt: bool
    ) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=[dict(tool) for tool in tools] or None,
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                )
            )
        except (TemplateError, TypeError) as error:  # templates add texts and raise what they like
            raise InputError(f"the chat template of model {self._name!r} refuses these messages: {error}") from None


def refuse_half_characters(text: str, what: str) -> None:
    """Raise ``InputError`` for a lone surrogate: it has no bytes, so no tokenizer takes it. ``what`` has it."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{what} holds half a character (a lone surrogate): expected text that UTF-8 can write")
