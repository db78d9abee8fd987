"""How a chat template writes calls of tools, learnt from the template itself; and reading them back from text.

A template is asked to write a call that is known, and what stands around it is the form. Only calls written as JSON
objects are understood. Knows texts and functions that render; knows nothing of tokenizers, models or agents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ChatMessage = Mapping[str, Any]
"""One chat message as templates know it: ``role``, ``content``, and perhaps ``tool_calls`` or ``tool_call_id``."""

Render = Callable[[Sequence[ChatMessage], Sequence[Mapping[str, Any]], bool], str]
"""``render(messages, tools, generation_prompt)``: the text of a chat."""

_NAME, _KEY, _VALUE, _SAID = "probe_tool", "probe_argument", "probe_value", "probe words"
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}, "required": [_KEY]},
    },
}
_CALL = {"id": "probe0000", "type": "function", "function": {"name": _NAME, "arguments": {_KEY: _VALUE}}}
_ASK: ChatMessage = {"role": "user", "content": "probe"}


@dataclass(frozen=True, slots=True)
class Call:
    """A call that the model wrote."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text says: words, calls, and what looks like a call and cannot be read."""

    content: str
    calls: tuple[Call, ...] = ()
    broken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The form of a call: ``opener``, a JSON object (or a list of them), perhaps a closer.

    ``opener``: as it is seen in decoded text; empty where a call is the whole text. ``before_name``: what the
    template writes up to the name; ``before_arguments``: from its end to the arguments.
    """

    opener: str
    closer: str
    name_key: str
    arguments_key: str
    before_name: str
    before_arguments: str

    def begin(self, name: str | None = None) -> str:
        """The beginning of a call, of the tool ``name`` if it is given: after it a model cannot but go on with it."""
        if name is None:
            return self.before_name
        return self.before_name + json.dumps(name)[1:] + self.before_arguments

    def read(self, text: str) -> Reading:
        """The words and calls of a text. What follows the opener and is no call of this form is ``broken``."""
        if self.opener:
            content, *parts = text.split(self.opener)
        elif text.lstrip()[:1] in ("{", "["):
            content, parts = "", [text]
        else:
            return Reading(text)
        calls: list[Call] = []
        broken: list[str] = []
        for part in parts:
            found = self._calls(part)
            if found is None and not self.opener:
                return Reading(text)  # some other JSON, so an answer
            if found is None:
                broken.append(part.strip())
            else:
                calls += found
        return Reading(content, tuple(calls), tuple(broken))

    def _calls(self, part: str) -> list[Call] | None:
        try:
            value, _ = json.JSONDecoder(strict=False).raw_decode(part.lstrip())
        except json.JSONDecodeError:
            return None
        calls = [self._call(item) for item in (value if isinstance(value, list) else [value])]
        return None if not calls or None in calls else [call for call in calls if call is not None]

    def _call(self, item: Any) -> Call | None:
        if not isinstance(item, dict) or not isinstance(name := item.get(self.name_key), str):
            return None
        if not self.opener and self.arguments_key not in item:
            return None  # an answer that is JSON
        arguments = _decoded(item.get(self.arguments_key) or {})
        return Call(name, arguments) if isinstance(arguments, dict) else None


def learn_tool_format(render: Render, visible: Callable[[str], str] = str) -> ToolFormat | None:
    """The form in which a template writes calls; None where it has no place for tools, or writes them otherwise.

    ``visible``: what of a text is left after it is encoded and decoded (special tokens go). Lets through what
    ``render`` raises, except for the rendered call: a template that refuses it has no form.
    """
    offered = render([_ASK], [_TOOL], True)
    if offered == render([_ASK], [], True):
        return None
    for said in (_SAID, ""):
        called = render([_ASK, {"role": "assistant", "content": said, "tool_calls": [_CALL]}], [_TOOL], False)
        if said in called:  # some templates drop the words beside a call
            start = called.rindex(said) + len(said) if said else _same(called, offered)
            return _format(called[start:], visible)
    return None


def _same(left: str, right: str) -> int:
    """How many characters at the beginning are the same."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(left), len(right)))


def _format(written: str, visible: Callable[[str], str]) -> ToolFormat | None:
    """The form of ``written``, which is the known call with whatever stands around it."""
    name_at = written.find(json.dumps(_NAME))
    start = written.rfind("{", 0, max(name_at, 0))
    if name_at < 0 or start < 0:
        return None
    try:
        call, length = json.JSONDecoder().raw_decode(written[start:])
    except json.JSONDecodeError:
        return None
    keys = {key: _decoded(value) for key, value in call.items()}
    name_key = next((key for key, value in keys.items() if value == _NAME), None)
    arguments_key = next((key for key, value in keys.items() if value == {_KEY: _VALUE}), None)
    arguments_at = -1 if arguments_key is None else written.find("{", start + 1)
    if name_key is None or arguments_key is None or arguments_at < name_at:
        return None
    before = written[:start].lstrip()
    return ToolFormat(
        opener=visible(before.rstrip("[ \n")).strip(),
        closer=visible(written[start + length :]).strip(" \n]"),
        name_key=name_key,
        arguments_key=arguments_key,
        before_name=before + written[start : name_at + 1],
        before_arguments=written[name_at + len(json.dumps(_NAME)) : arguments_at],
    )


def _decoded(value: Any) -> Any:
    """JSON inside a JSON string, which some templates write arguments as."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return json.loads(value, strict=False)
    except json.JSONDecodeError:
        return value
