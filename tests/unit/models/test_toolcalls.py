"""The form of tool calls, learnt from templates of four families, and read back from text."""

from __future__ import annotations

import pytest

from elm_agent.errors import InputError
from elm_agent.models.templates import ChatTemplate
from elm_agent.models.toolcalls import Call, Reading, ToolFormat
from elm_agent.testing.tiny import CHATML, CHATML_TOOLS, tiny_tokenizer

BARE = (
    "{% for message in messages %}{% if tools and loop.first %}{{ tools | tojson }}{% endif %}"
    "{% if message.tool_calls %}<|im_start|>assistant\n"
    '{"name": "{{ message.tool_calls[0].function.name }}", '
    '"parameters": {{ message.tool_calls[0].function.arguments | tojson }}}<|im_end|>'
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A call is the whole answer, words beside it are dropped, and arguments are parameters."""

LISTED = (
    "{% for message in messages %}{% if tools and loop.first %}{{ tools | tojson }}{% endif %}"
    "{% if message.role == 'user' %}[ASK] {{ message.content }}[/ASK]{% elif message.tool_calls %}"
    "<|im_start|> [{% for call in message.tool_calls %}"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}{% endfor %}]<|im_end|>"
    "{% else %} {{ message.content }}<|im_end|>{% endif %}{% endfor %}"
)
"""Calls are a list behind a special token, which decoding drops."""

MARKUP = CHATML_TOOLS.replace('{"name": "{{ call.function.name }}"', "<function={{ call.function.name }}>")

THINKING = CHATML_TOOLS.replace(
    "<|im_start|>{{ message.role }}\n",
    "<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}<think></think>{% endif %}",
)


def learnt(template: str) -> ToolFormat | None:
    return ChatTemplate(tiny_tokenizer(template), "tiny").tool_format


def test_marked_calls_are_learnt() -> None:
    form = learnt(CHATML_TOOLS)
    assert form is not None
    assert (form.opener, form.closer, form.name_key, form.arguments_key) == (
        "<tool_call>",
        "</tool_call>",
        "name",
        "arguments",
    )
    assert form.begin() == '<tool_call>\n{"name": "'
    assert form.begin("add") == '<tool_call>\n{"name": "add", "arguments": '


def test_what_a_template_adds_before_words_is_not_the_opener() -> None:
    form = learnt(THINKING)
    assert form is not None
    assert form.opener == "<tool_call>"


def test_bare_calls_are_learnt() -> None:
    form = learnt(BARE)
    assert form is not None
    assert (form.opener, form.arguments_key) == ("", "parameters")
    assert form.begin("add") == '{"name": "add", "parameters": '
    assert form.read('{"name": "add", "parameters": {"a": 1}}').calls == (Call("add", {"a": 1}),)
    assert form.read('{"name": "Ada"}') == Reading('{"name": "Ada"}')  # an answer that is JSON
    assert form.read("It is {so}.") == Reading("It is {so}.")


def test_listed_calls_behind_a_special_token_are_learnt() -> None:
    form = learnt(LISTED)
    assert form is not None
    assert form.opener == ""
    assert form.begin("add") == '<|im_start|> [{"name": "add", "arguments": '
    calls = form.read('[{"name": "a", "arguments": {}}, {"name": "b", "arguments": "{\\"x\\": 1}"}]').calls
    assert calls == (Call("a", {}), Call("b", {"x": 1}))


@pytest.mark.parametrize("template", [CHATML, MARKUP, "{{ raise_exception('no') }}"])
def test_other_templates_have_no_form(template: str) -> None:
    assert learnt(template) is None


def test_no_template_has_no_form() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    template = ChatTemplate(tokenizer, "tiny")
    assert template.tool_format is None
    assert bytes(template.encode([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]))


def test_calls_words_and_rubbish_are_told_apart() -> None:
    form = learnt(CHATML_TOOLS)
    assert form is not None
    text = (
        'Let me see. <tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now"}\n</tool_call><tool_call>\n{"name": "add", "argu'
    )
    reading = form.read(text)
    assert reading.content == "Let me see. "
    assert reading.calls == (Call("add", {"a": 1}), Call("now", {}))
    assert reading.broken == ('{"name": "add", "argu',)
    assert form.read("<tool_call>[]").broken == ("[]",)
    assert form.read('<tool_call>{"name": 3}').broken == ('{"name": 3}',)
    assert form.read('<tool_call>{"name": "a", "arguments": [1]}').broken


def test_a_template_without_a_place_for_tools_refuses_them() -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    with pytest.raises(InputError, match="no place for tools"):
        ChatTemplate(tiny_tokenizer(), "tiny").encode([{"role": "user", "content": "hi"}], tools=tools)


def test_what_a_template_raises_is_an_input_error() -> None:
    template = ChatTemplate(tiny_tokenizer("{{ raise_exception('roles must alternate') }}"), "tiny")
    with pytest.raises(InputError, match="roles must alternate"):
        template.encode([{"role": "user", "content": "hi"}])


def test_half_a_character_is_refused() -> None:
    with pytest.raises(InputError, match="half a character"):
        ChatTemplate(tiny_tokenizer(), "tiny").encode([{"role": "user", "content": "\ud800"}])
