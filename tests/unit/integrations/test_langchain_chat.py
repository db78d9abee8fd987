"""``ChatELM``: what it asks of the engine, what it makes of the text, and what happens when nobody waits any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from written_models import CERTAINTY, LOGPROB, wait_until, words

from elm_agent.errors import InputError, NotFound
from elm_agent.integrations.langchain import ChatELM
from elm_agent.testing.doubles import FakeModel, FakeTrainer
from elm_agent.testing.tiny import CHATML

Open = Callable[..., Any]


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def now() -> str:
    """Tell the time."""
    return "noon"


def whole(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    full = chunks[0]
    for chunk in chunks[1:]:
        full += chunk
    return full


def both_ways(model: Any, asked: Any, **more: Any) -> tuple[AIMessage, AIMessageChunk]:
    return model.invoke(asked, **more), whole(list(model.stream(asked, **more)))


# --- words ----------------------------------------------------------------------------------------------------


def test_a_whole_and_its_pieces_say_the_same(opened: Open) -> None:
    message, full = both_ways(ChatELM(runtime=opened(script=words)), "What is 7 times 8?")
    assert message.content == full.content == "I think it is 56."
    assert message.usage_metadata == full.usage_metadata
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] == len("I think it is 56.") + 1  # and the end token
    told = message.response_metadata
    assert {name: told[name] for name in ("memory_id", "route", "finish_reason", "mean_logprob")} == {
        "memory_id": None,
        "route": "no_memory",
        "finish_reason": "stop",
        "mean_logprob": pytest.approx(-0.1),
    }
    assert full.response_metadata["route"] == "no_memory"
    assert full.chunk_position == "last"


async def test_async_says_the_same(opened: Open) -> None:
    model = ChatELM(runtime=opened(script=words))
    message = await model.ainvoke("What is 7 times 8?")
    full = whole([chunk async for chunk in model.astream("What is 7 times 8?")])
    assert message.content == full.content == "I think it is 56."
    assert message.usage_metadata == full.usage_metadata


def test_the_template_writes_the_chat(opened: Open) -> None:
    runtime = opened(script=words)
    chat = [
        SystemMessage("Be brief."),
        HumanMessage("add"),
        AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1}, "id": "1", "type": "tool_call"}]),
        ToolMessage("3", tool_call_id="1"),
        HumanMessage([{"type": "text", "text": "and "}, "now?"]),
    ]
    model = ChatELM(runtime=runtime)
    model.invoke(chat)
    prompt = runtime.model.tokenizer.decode(list(runtime.model.written.requests[-1].prompt_ids))
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nadd<|im_end|>\n<|im_start|>assistant\n\n"
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\n3<|im_end|>\n<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert model.get_num_tokens_from_messages(chat) == len(runtime.model.written.requests[-1].prompt_ids)
    assert model.get_num_tokens("four") == 4


def test_limits_and_sampling_reach_the_engine(opened: Open) -> None:
    runtime = opened(script=words)
    model = ChatELM(runtime=runtime, max_tokens=5, temperature=0.7, seed=3)
    message = model.invoke("hi")
    request = runtime.model.written.requests[-1]
    assert (request.max_new_tokens, request.temperature, request.seed) == (5, 0.7, 3)
    assert (message.content, message.response_metadata["finish_reason"]) == ("I thi", "length")
    model.bind(max_tokens=7, temperature=0.1, seed=9).invoke("hi")
    request = runtime.model.written.requests[-1]
    assert (request.max_new_tokens, request.temperature, request.seed) == (7, 0.1, 9)
    unseeded = ChatELM(runtime=runtime, temperature=1.0)
    unseeded.invoke("hi")
    unseeded.invoke("hi")
    first, second = (one.seed for one in runtime.model.written.requests[-2:])
    assert first != second


@pytest.mark.parametrize(("stop", "left"), [(["it is"], "I think "), (["zzz", "k i"], "I thin"), (["56.x"], None)])
async def test_stop_sequences_cut_and_free_the_row(opened: Open, stop: list[str], left: str | None) -> None:
    runtime = opened(script=words)
    model = ChatELM(runtime=runtime)
    message, full = both_ways(model, "hi", stop=stop)
    again = await model.ainvoke("hi", stop=stop)
    assert message.content == full.content == again.content == (left or "I think it is 56.")
    assert message.response_metadata["finish_reason"] == "stop"
    assert ChatELM(runtime=runtime, stop=stop).invoke("hi").content == message.content
    assert message.usage_metadata is not None
    assert message.response_metadata["mean_logprob"] == pytest.approx(LOGPROB)
    assert message.response_metadata["self_certainty"] == pytest.approx(CERTAINTY)
    if left is not None:
        assert message.usage_metadata["output_tokens"] < len("I think it is 56.")


def test_a_piece_that_may_begin_a_stop_sequence_waits(opened: Open) -> None:
    model = ChatELM(runtime=opened(script=lambda _p, _m: "aab aac"))
    pieces = [str(chunk.content) for chunk in model.stream("hi", stop=["aac"])]
    assert "".join(pieces) == "aab "


# --- memories -------------------------------------------------------------------------------------------------


def test_a_bound_memory_is_before_the_chat(opened: Open, learn: Callable[..., str]) -> None:
    runtime = opened(script=words)
    memory_id = learn(runtime, "What is 7 times 9?")
    for model in (ChatELM(runtime=runtime, memory_id=memory_id), ChatELM(runtime=runtime).bind(memory_id=memory_id)):
        message, full = both_ways(model, "What is 9 times 7?")
        assert message.content == full.content == "With this in mind it is 63."
        for told in (message.response_metadata, full.response_metadata):
            assert (told["memory_id"], told["memory_namespace"], told["route"]) == (memory_id, "default", "memory")


def test_memories_of_other_namespaces_are_named_or_shared(opened: Open, learn: Callable[..., str]) -> None:
    runtime = opened(script=words)
    memory_id = learn(runtime, "What is 7 times 9?", "ada")
    with pytest.raises(NotFound, match="is not in 'default'"):
        ChatELM(runtime=runtime).bind(memory_id=memory_id).invoke("hi")
    named = ChatELM(runtime=runtime).bind(memory_id=memory_id, memory_namespace="ada").invoke("hi")
    assert named.response_metadata["memory_namespace"] == "ada"
    sharing = opened(script=words, shared_namespaces=["ada"])
    assert ChatELM(runtime=sharing).bind(memory_id=memory_id).invoke("hi").response_metadata["route"] == "memory"


@pytest.mark.parametrize("name", ["mem_0", "", "../x"])
def test_an_unknown_memory_is_told(opened: Open, name: str) -> None:
    with pytest.raises(NotFound):
        ChatELM(runtime=opened(script=words), memory_id=name).invoke("hi")


# --- tools ----------------------------------------------------------------------------------------------------


def test_calls_of_tools_are_read(opened: Open) -> None:
    message, full = both_ways(ChatELM(runtime=opened()).bind_tools([add, now]), "Add something.")
    for one in (message, full):
        (call,) = one.tool_calls
        assert (call["name"], call["args"]) == ("add", {"a": 3, "b": 3})
        assert call["id"]
        assert one.content == ""
        assert one.response_metadata["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("choice", ["now", {"type": "function", "function": {"name": "now"}}])
def test_a_chosen_tool_is_begun(opened: Open, choice: Any) -> None:
    runtime = opened()
    message, full = both_ways(ChatELM(runtime=runtime).bind_tools([add, now], tool_choice=choice), "hi")
    assert message.tool_calls[0]["name"] == full.tool_calls[0]["name"] == "now"
    assert runtime.model.tokenizer.decode(list(runtime.model.written.requests[-1].prompt_ids)).endswith(
        '<tool_call>\n{"name": "now", "arguments": '
    )


def test_no_tool_and_an_unknown_one(opened: Open) -> None:
    runtime = opened(script=words)
    ChatELM(runtime=runtime).bind_tools([add], tool_choice="none").invoke("hi")
    assert "Add two" not in runtime.model.tokenizer.decode(list(runtime.model.written.requests[-1].prompt_ids))
    with pytest.raises(InputError, match="none of the tools: expected one of add"):
        ChatELM(runtime=runtime).bind_tools([add], tool_choice="subtract")


def test_words_before_a_call_are_shown_and_a_broken_call_is_too(opened: Open) -> None:
    script = '{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>\n'
    runtime = opened(script=lambda _p, _m: f"Let me <see>. <tool_call>\n{script}<tool_call>{{oh")
    message, full = both_ways(ChatELM(runtime=runtime).bind_tools([add]), "hi")
    for one in (message, full):
        assert [call["args"] for call in one.tool_calls] == [{"a": 1, "b": 2}]
        assert one.content == "Let me <see>. {oh"
    assert [call["args"] for call in message.invalid_tool_calls] == ["{oh"]


def test_a_template_without_tools_says_so(opened: Open) -> None:
    model = ChatELM(runtime=opened(script=words, template=CHATML))
    assert model.invoke("hi").content
    with pytest.raises(InputError, match="no place for tools"):
        model.bind_tools([add]).invoke("hi")


# --- nobody waits any more ------------------------------------------------------------------------------------


def test_a_stream_that_is_dropped_frees_its_row(opened: Open) -> None:
    runtime = opened(script=words)
    runtime.model.written.hold = threading.Event()
    stream = ChatELM(runtime=runtime).stream("hi")
    assert next(stream).content
    stream.close()
    wait_until(lambda: runtime.model.written.given_up == 1)


async def test_an_async_stream_that_is_dropped_frees_its_row(opened: Open) -> None:
    runtime = opened(script=words)
    runtime.model.written.hold = threading.Event()
    stream = ChatELM(runtime=runtime).astream("hi")
    assert (await anext(stream)).content
    await stream.aclose()
    await asyncio.to_thread(wait_until, lambda: runtime.model.written.given_up == 1)


async def test_an_answer_whose_caller_is_cancelled_frees_its_row(opened: Open) -> None:
    runtime = opened(script=words)
    runtime.model.written.hold = threading.Event()
    asking = asyncio.create_task(ChatELM(runtime=runtime).ainvoke("hi"))
    await asyncio.to_thread(wait_until, lambda: len(runtime.model.written.requests) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.to_thread(wait_until, lambda: runtime.model.written.given_up == 1)


async def test_a_timeout_is_told(opened: Open) -> None:
    runtime = opened(script=words)
    runtime.model.written.hold = threading.Event()
    model = ChatELM(runtime=runtime, timeout=0.05)
    with pytest.raises(TimeoutError, match=r"timeout of 0\.05 seconds"):
        list(model.stream("hi"))
    with pytest.raises(TimeoutError):
        model.invoke("hi")
    with pytest.raises(TimeoutError):
        await model.ainvoke("hi")
    with pytest.raises(TimeoutError):
        [chunk async for chunk in model.astream("hi")]


# --- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chat", "told"),
    [
        ([], "without messages"),
        ([HumanMessage([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}])], "reads text only"),
        ([HumanMessage("\ud800")], "half a character"),
        ([HumanMessage("long " * 2000)], "more than the model's context"),
    ],
)
async def test_unusable_chats_are_refused(opened: Open, chat: list[Any], told: str) -> None:
    model = ChatELM(runtime=opened(script=words))
    with pytest.raises(InputError, match=told):
        model.invoke(chat)
    with pytest.raises(InputError, match=told):
        [chunk async for chunk in model.astream(chat)]


def test_unknown_fields_and_options_are_refused(opened: Open) -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        ChatELM(memory="mem_1")  # type: ignore[call-arg]
    with pytest.raises(InputError, match="no option memory"):
        ChatELM(runtime=opened(script=words)).invoke("hi", memory="mem_1")


def test_a_model_object_of_ones_own_needs_no_tokenizer(tmp_path: Any) -> None:
    from elm_agent import open_runtime

    with open_runtime(model=FakeModel(), trainer=FakeTrainer(), home=tmp_path, index="exact") as runtime:
        model = ChatELM(runtime=runtime)
        message, full = both_ways(model, "What is 7 times 8?")
        assert message.content == full.content
        with pytest.raises(InputError, match="takes no tools"):
            model.bind_tools([add]).invoke("hi")
        with pytest.raises(InputError, match="no tokenizer"):
            model.get_num_tokens("hi")
