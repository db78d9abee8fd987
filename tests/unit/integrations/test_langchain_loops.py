"""Agents whose tools fail, that never end, that nobody listens to any more: what is told, learnt and left over."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import ToolException, tool
from langgraph.errors import GraphRecursionError
from written_models import OPENER, wait_until, words

from elm_agent.integrations.langchain import ChatELM, ElmMemoryMiddleware
from elm_agent.testing.doubles import FixedVerifier

Open = Callable[..., Any]
Learn = Callable[..., str]
ASKED = {"messages": "What is 9 times 7?"}
WITH_MEMORY = "With this in mind it is 63."


@tool
def divide(a: int, b: int) -> float:
    """Divide two numbers."""
    if b == 0:
        raise ToolException("b is 0: give another one")
    return a / b


divide.handle_tool_error = True


def calling(name: str, **arguments: Any) -> str:
    return f"{OPENER}{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def first(call: str) -> Callable[[str, str | None], str]:
    """Writes ``call``, and words once any tool has answered."""
    return lambda prompt, memory_id: words(prompt, memory_id) if "<|im_start|>tool" in prompt else call


def agent_on(runtime: Any) -> Any:
    return create_agent(ChatELM(runtime=runtime), [divide], middleware=[ElmMemoryMiddleware(runtime)])


@pytest.fixture(autouse=True)
def nothing_runs_on() -> Iterator[None]:
    """No thread of a row or of a candidate outlives its test; those of event loops' pools wait for more work."""
    before = set(threading.enumerate())
    yield
    wait_until(
        lambda: not [one for one in set(threading.enumerate()) - before if not one.name.startswith("asyncio_")]
    )


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (calling("divide", a=1, b=0), "b is 0"),
        (calling("divide", a="one"), "b: Field required"),
        (calling("fly"), "fly is not a valid tool"),
    ],
)
async def test_a_tool_that_fails_is_told_and_the_answer_comes_with_memory(
    opened: Open, learn: Learn, call: str, told: str
) -> None:
    runtime = opened(script=first(call), verifier=FixedVerifier(memory=1.0))
    learn(runtime, "What is 7 times 9?")
    agent = agent_on(runtime)
    for out in (agent.invoke(ASKED), await agent.ainvoke(ASKED)):
        messages: list[BaseMessage] = out["messages"]
        assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
        assert getattr(messages[2], "status", None) == "error"
        assert told in messages[2].text
        assert (messages[3].text, messages[3].response_metadata["route"]) == (WITH_MEMORY, "memory")
    assert len(runtime.bank.uses("default")) == 2  # of final answers only
    assert [job.question for job in runtime.bank.jobs.list()].count("What is 9 times 7?") == 1


def test_a_call_that_is_no_json_ends_the_run_in_words(opened: Open, learn: Learn) -> None:
    runtime = opened(script=first(f"{OPENER}{{oh"), learn=False)
    learn(runtime, "What is 7 times 9?")
    message = agent_on(runtime).invoke(ASKED)["messages"][-1]
    assert isinstance(message, AIMessage)
    assert (message.text, len(message.invalid_tool_calls)) == ("{oh", 1)
    assert runtime.bank.uses("default") == []  # it is no answer that could be compared


async def test_a_loop_that_never_ends_is_cut_and_leaves_nothing(opened: Open, learn: Learn) -> None:
    runtime = opened(script=lambda _p, _m: calling("divide", a=1, b=0))
    learn(runtime, "What is 7 times 9?")
    jobs = len(runtime.bank.jobs.list())
    with pytest.raises(GraphRecursionError):
        agent_on(runtime).invoke(ASKED, {"recursion_limit": 9})
    with pytest.raises(GraphRecursionError):
        await agent_on(runtime).ainvoke(ASKED, {"recursion_limit": 9})
    assert runtime.bank.uses("default") == []
    assert len(runtime.bank.jobs.list()) == jobs  # no answer, so nothing to learn from


async def test_a_stream_that_is_dropped_half_way_frees_both_rows(opened: Open, learn: Learn) -> None:
    runtime = opened(script=words, learn=False)
    learn(runtime, "What is 7 times 9?")
    written = runtime.model.written
    written.hold = threading.Event()
    stream = agent_on(runtime).astream(ASKED, stream_mode="custom")
    assert (await anext(stream))["event"] == "elm.retrieved"
    await asyncio.to_thread(wait_until, lambda: len(written.requests) >= 2)
    await stream.aclose()
    await asyncio.to_thread(wait_until, lambda: written.given_up == 2)
    assert runtime.bank.uses("default") == []


async def test_a_stream_of_words_that_is_dropped_frees_its_row(opened: Open) -> None:
    runtime = opened(script=words)
    runtime.model.written.hold = threading.Event()
    stream = agent_on(runtime).astream(ASKED, stream_mode="messages")
    message, _ = await anext(stream)
    assert message.text
    await stream.aclose()
    await asyncio.to_thread(wait_until, lambda: runtime.model.written.given_up == 1)
    assert runtime.bank.jobs.list() == []


def test_a_plain_stream_that_is_closed_leaves_nothing(opened: Open) -> None:
    runtime = opened(script=words)
    stream = agent_on(runtime).stream(ASKED, stream_mode="messages")
    message, _ = next(stream)
    assert message.text
    stream.close()  # LangGraph waits here for the node that runs; the fixture sees that nothing is left
    assert runtime.bank.jobs.list() == []


def test_a_model_without_a_chat_template_answers_with_memory(opened: Open, learn: Learn) -> None:
    runtime = opened(script=words, verifier=FixedVerifier(memory=1.0), learn=False)
    runtime.model.tokenizer.chat_template = None
    learn(runtime, "What is 7 times 9?")
    agent = create_agent(
        ChatELM(runtime=runtime), middleware=[ElmMemoryMiddleware(runtime)], system_prompt="Be brief."
    )
    message = agent.invoke(ASKED)["messages"][-1]
    assert (message.text, message.response_metadata["route"]) == (WITH_MEMORY, "memory")
    prompt = runtime.model.tokenizer.decode(list(runtime.model.written.requests[-1].prompt_ids))
    assert prompt == "Be brief.\n\nWhat is 9 times 7?\n\n"
