"""``ElmMemoryMiddleware`` in agents of ``create_agent``: what is returned, what is seen, what is learnt."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelRetryMiddleware, wrap_model_call
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel
from written_models import obliging, wait_until, words

from elm_agent.errors import InputError, StorageError
from elm_agent.integrations.langchain import ChatELM, ElmMemoryMiddleware
from elm_agent.integrations.langgraph import RunContext
from elm_agent.testing.doubles import FixedVerifier

Open = Callable[..., Any]
Learn = Callable[..., str]
PLAIN, WITH_MEMORY = "I think it is 56.", "With this in mind it is 63."
ASKED = {"messages": "What is 9 times 7?"}


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def agent_on(runtime: Any, *, tools: Any = (), **more: Any) -> Any:
    return create_agent(ChatELM(runtime=runtime), list(tools), middleware=[ElmMemoryMiddleware(runtime)], **more)


def answer_of(out: dict[str, Any]) -> AIMessage:
    message = out["messages"][-1]
    assert isinstance(message, AIMessage)
    return message


async def both_ways(agent: Any, asked: Any, **more: Any) -> list[AIMessage]:
    return [answer_of(agent.invoke(asked, **more)), answer_of(await agent.ainvoke(asked, **more))]


def saver() -> InMemorySaver:
    return InMemorySaver(serde=JsonPlusSerializer(pickle_fallback=False, allowed_msgpack_modules=None))


# --- which answer ---------------------------------------------------------------------------------------------


async def test_without_a_memory_the_answer_is_the_models_and_is_learnt_from(opened: Open) -> None:
    runtime = opened(script=words)
    agent = agent_on(runtime)
    out = agent.invoke(ASKED)
    told = answer_of(out).response_metadata
    assert (answer_of(out).text, told["route"], told["memory_id"]) == (PLAIN, "no_memory", None)
    assert set(out) == {"messages"}
    (memory,) = runtime.bank.memories("default")
    assert memory.question == "What is 9 times 7?"
    await agent.ainvoke({"messages": "What is 2 plus 2?"})
    assert len(runtime.bank.memories("default")) == 2


@pytest.mark.parametrize(("score", "route", "text"), [(1.0, "memory", WITH_MEMORY), (-1.0, "zero_shot", PLAIN)])
async def test_the_verifier_chooses(opened: Open, learn: Learn, score: float, route: str, text: str) -> None:
    runtime = opened(script=words, verifier=FixedVerifier(memory=score), learn=False)
    memory_id = learn(runtime, "What is 7 times 9?")
    for message in await both_ways(agent_on(runtime), ASKED):
        told = message.response_metadata
        assert (message.text, told["route"], told["memory_id"], told["memory_namespace"]) == (
            text,
            route,
            memory_id,
            "default",
        )
    uses = runtime.bank.uses("default")
    assert [(use.route, use.memory_answer, use.zero_shot_answer) for use in uses] == [(route, "63", "56")] * 2
    assert told["use_id"] in {use.id for use in uses}


async def test_both_rows_are_asked_the_same(opened: Open, learn: Learn) -> None:
    runtime = opened(script=words, learn=False)
    learn(runtime, "What is 7 times 9?")
    runtime.model.written.requests.clear()
    await both_ways(agent_on(runtime, system_prompt="Be brief."), ASKED)
    rows = runtime.model.written.requests
    assert len({row.prompt_ids for row in rows}) == 1
    assert sorted(row.prefix is None for row in rows) == [False, False, True, True]


async def test_an_answer_that_a_stop_sequence_ends_is_chosen_and_learnt_from(opened: Open, learn: Learn) -> None:
    runtime = opened(script=words, verifier=FixedVerifier(memory=1.0))
    learn(runtime, "What is 7 times 9?")
    model = ChatELM(runtime=runtime, stop=["3."])
    agent = create_agent(model, middleware=[ElmMemoryMiddleware(runtime)])
    for message in await both_ways(agent, ASKED):
        assert (message.text, message.response_metadata["route"]) == ("With this in mind it is 6", "memory")
    assert [use.memory_answer for use in runtime.bank.uses("default")] == ["6", "6"]
    assert "What is 9 times 7?" in {memory.question for memory in runtime.bank.memories("default")}


# --- what is seen ---------------------------------------------------------------------------------------------


async def test_candidates_are_hidden_from_the_message_stream(opened: Open, learn: Learn) -> None:
    runtime = opened(script=words, verifier=FixedVerifier(memory=1.0), learn=False)
    learn(runtime, "What is 7 times 9?")
    agent = agent_on(runtime)
    sync = [message.text for message, _ in agent.stream(ASKED, stream_mode="messages")]
    asynchronous = [message.text async for message, _ in agent.astream(ASKED, stream_mode="messages")]
    assert sync == asynchronous == [WITH_MEMORY]
    inside = [message.text for _, (message, _) in agent.stream(ASKED, stream_mode="messages", subgraphs=True)]
    assert inside == [WITH_MEMORY]


def test_without_a_memory_the_answer_streams(opened: Open) -> None:
    agent = agent_on(opened(script=words, learn=False))
    pieces = [message.text for message, _ in agent.stream(ASKED, stream_mode="messages")]
    assert "".join(pieces) == PLAIN
    assert len(pieces) > 5


def test_events_tell_what_happens(opened: Open, learn: Learn) -> None:
    runtime = opened(script=words)
    learn(runtime, "What is 7 times 9?")
    events = [event["event"] for event in agent_on(runtime).stream(ASKED, stream_mode="custom")]
    assert events[0] == "elm.retrieved"
    assert sorted(events[1:3]) == ["elm.candidate", "elm.candidate"]
    assert events[3:] == ["elm.routed", "elm.consolidation.queued"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_observer_is_told_each_step(opened: Open, learn: Learn, asynchronous: bool) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    runtime = opened(script=obliging, observe=lambda name, detail: told.append((name, detail)), learn=False)
    agent = agent_on(runtime, tools=[add])

    async def steps() -> list[str]:
        told.clear()
        out = await agent.ainvoke(ASKED) if asynchronous else agent.invoke(ASKED)
        assert answer_of(out).text in (PLAIN, WITH_MEMORY)
        return [name.removeprefix("answer.") for name, _ in told if name.startswith("answer.")]

    call = ["retrieved", "left"]  # the model called a tool, and answered when it had the result
    assert await steps() == [*call, "retrieved", "generated", "routed", "noted"]
    memory_id = learn(runtime, "What is 7 times 9?")
    assert await steps() == [*call, "retrieved", "generated", "generated", "routed", "noted"]
    assert {detail["answer_id"] for name, detail in told if name == "answer.generated"} == {told[-1][1]["answer_id"]}
    sources = {detail["source"]: detail["memory_id"] for name, detail in told if name == "answer.generated"}
    assert sources == {"memory": memory_id, "zero_shot": None}
    runtime.model.written.script = lambda _prompt, _memory_id: 1 / 0
    told.clear()
    with pytest.raises(ZeroDivisionError):
        await agent.ainvoke(ASKED) if asynchronous else agent.invoke(ASKED)
    assert [name for name, _ in told] == ["answer.retrieved", "answer.failed"]


# --- tools ----------------------------------------------------------------------------------------------------


async def test_calls_of_tools_are_left_alone(opened: Open, learn: Learn) -> None:
    runtime = opened(script=obliging, verifier=FixedVerifier(memory=1.0), learn=False)
    learn(runtime, "What is 7 times 9?")
    for out in (agent_on(runtime, tools=[add]).invoke(ASKED), await agent_on(runtime, tools=[add]).ainvoke(ASKED)):
        assert [message.type for message in out["messages"]] == ["human", "ai", "tool", "ai"]
        assert out["messages"][1].tool_calls[0]["name"] == "add"
        assert out["messages"][1].response_metadata["memory_id"] is None
        assert out["messages"][2].content == "6"
        assert answer_of(out).text == WITH_MEMORY
    assert len(runtime.bank.uses("default")) == 2


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_call_does_not_wait_for_the_row_beside_it(opened: Open, learn: Learn, asynchronous: bool) -> None:
    begun, release = threading.Event(), threading.Event()

    def script(prompt: str, memory_id: str | None) -> str:
        if "<|im_start|>tool" not in prompt:
            if memory_id is not None:
                begun.set()
            assert (begun if memory_id is None else release).wait(60)
        return obliging(prompt, memory_id)

    @tool
    def go() -> str:
        """Let the other row go."""
        release.set()
        return "gone"

    runtime = opened(script=script, learn=False)
    learn(runtime, "What is 7 times 9?")
    agent = agent_on(runtime, tools=[go])
    out = await agent.ainvoke(ASKED) if asynchronous else await asyncio.to_thread(agent.invoke, ASKED)
    assert [message.type for message in out["messages"]] == ["human", "ai", "tool", "ai"]
    await asyncio.to_thread(wait_until, lambda: runtime.model.written.given_up == 1)


async def test_a_memory_that_calls_a_tool_where_the_plain_answer_is_final_costs_nothing(
    opened: Open, learn: Learn
) -> None:
    runtime = opened(script=lambda p, m: words(p, m) if m is None else obliging(p, m), learn=False)
    learn(runtime, "What is 7 times 9?")
    for message in await both_ways(agent_on(runtime, tools=[add]), ASKED):
        assert (message.text, message.response_metadata["route"]) == (PLAIN, "failed_memory")
        assert "calls a tool" in message.response_metadata["reason"]


def test_a_tool_that_raises_ends_the_run_and_nothing_is_learnt(opened: Open) -> None:
    @tool
    def divide(a: int, b: int) -> float:
        """Divide."""
        raise ValueError(f"cannot divide {a} by {b}")

    runtime = opened(script=obliging)
    with pytest.raises(ValueError, match="cannot divide"):
        agent_on(runtime, tools=[divide]).invoke(ASKED)
    assert runtime.bank.jobs.list() == []


def test_a_structured_response_is_left_alone(opened: Open, learn: Learn) -> None:
    class Weather(BaseModel):
        """The weather."""

        city: str

    runtime = opened(script=obliging, learn=False)
    learn(runtime, "What is 7 times 9?")
    out = agent_on(runtime, response_format=Weather).invoke(ASKED)
    assert out["structured_response"] == Weather(city="cats")
    assert runtime.bank.uses("default") == []


# --- a failure of memory costs no answer ----------------------------------------------------------------------


async def test_a_memory_that_fails_costs_nothing(opened: Open, learn: Learn) -> None:
    runtime = opened(script=words, learn=False)
    learn(runtime, "What is 7 times 9?")
    runtime.model.written.error = RuntimeError("out of memory")
    for message in await both_ways(agent_on(runtime), ASKED):
        assert (message.text, message.response_metadata["route"]) == (PLAIN, "failed_memory")
        assert "out of memory" in message.response_metadata["reason"]


def test_a_bank_that_fails_costs_nothing(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise StorageError("the disk is gone")

    runtime = opened(script=words)
    for name in ("nearest", "record_use"):
        monkeypatch.setattr(runtime.bank, name, broken)
    monkeypatch.setattr(runtime.bank.jobs, "enqueue", broken)
    message = answer_of(agent_on(runtime).invoke(ASKED))
    assert (message.text, message.response_metadata["route"]) == (PLAIN, "failed_memory")


def test_the_plain_row_failing_raises(opened: Open, learn: Learn) -> None:
    def script(_prompt: str, memory_id: str | None) -> str:
        if memory_id is None:
            raise RuntimeError("out of memory")
        return "63"

    runtime = opened(script=script)
    learn(runtime, "What is 7 times 9?")
    with pytest.raises(RuntimeError, match="out of memory"):
        agent_on(runtime).invoke(ASKED)


async def test_another_model_is_left_alone_with_one_warning(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    model = GenericFakeChatModel(messages=iter(["one", "two"]))
    agent = create_agent(model, middleware=[ElmMemoryMiddleware(opened(script=words))])
    with caplog.at_level(logging.WARNING, "elm_agent"):
        first, second = await both_ways(agent, ASKED)
    assert (first.text, second.text) == ("one", "two")
    assert [record.message for record in caplog.records] == [
        "GenericFakeChatModel takes no memories, which are made for one local model: its answers are left as they "
        "are; use ChatELM to have them with memory"
    ]


@pytest.mark.parametrize("asked", ["", " \n", "nul \x00 in it"])
def test_what_cannot_be_looked_up_is_answered_all_the_same(opened: Open, asked: str) -> None:
    runtime = opened(script=words)
    assert answer_of(agent_on(runtime).invoke({"messages": [HumanMessage(asked)]})).text == PLAIN
    assert runtime.bank.jobs.list() == []


# --- options --------------------------------------------------------------------------------------------------


async def test_context_and_arguments_say_how(opened: Open) -> None:
    runtime = opened(script=words)
    middleware = ElmMemoryMiddleware(runtime, namespace="ada", learn=False)
    agent = create_agent(ChatELM(runtime=runtime), middleware=[middleware], context_schema=RunContext)
    agent.invoke(ASKED)
    assert runtime.bank.jobs.list() == []
    agent.invoke(ASKED, context={"learn": True})
    await agent.ainvoke(ASKED, context={"learn": True, "namespace": "ben"})
    assert sorted(job.namespace for job in runtime.bank.jobs.list()) == ["ada", "ben"]
    assert answer_of(agent.invoke(ASKED)).response_metadata["memory_namespace"] == "ada"
    assert answer_of(agent.invoke(ASKED, context={"namespace": "carl"})).response_metadata["route"] == "no_memory"
    with pytest.raises(InputError, match="min_similarity"):
        agent.invoke(ASKED, context={"min_similarity": 7})


def test_the_question_can_be_another(opened: Open) -> None:
    runtime = opened(script=words)
    middleware = ElmMemoryMiddleware(runtime, question=lambda messages: messages[0].text.removeprefix("Please: "))
    agent = create_agent(ChatELM(runtime=runtime), middleware=[middleware])
    agent.invoke({"messages": "Please: What is 9 times 7?"})
    assert runtime.bank.memories("default")[0].question == "What is 9 times 7?"
    silent = create_agent(
        ChatELM(runtime=runtime), middleware=[ElmMemoryMiddleware(runtime, question=lambda _: None)]
    )
    assert "similarity" not in answer_of(silent.invoke(ASKED)).response_metadata


def test_a_memory_of_ones_own_choice_stands(opened: Open, learn: Learn) -> None:
    runtime = opened(script=words, verifier=FixedVerifier(memory=-1.0))
    memory_id = learn(runtime, "What is 7 times 9?")
    model = ChatELM(runtime=runtime, memory_id=memory_id)
    message = answer_of(create_agent(model, middleware=[ElmMemoryMiddleware(runtime)]).invoke(ASKED))
    assert (message.text, message.response_metadata["route"]) == (WITH_MEMORY, "memory")


def test_two_runtimes_are_refused(opened: Open) -> None:
    agent = create_agent(ChatELM(runtime=opened()), middleware=[ElmMemoryMiddleware(opened())])
    with pytest.raises(InputError, match="another runtime"):
        agent.invoke(ASKED)


# --- with other middleware, threads and checkpoints -----------------------------------------------------------


async def test_other_middleware_is_passed_through(opened: Open, learn: Learn) -> None:
    calls = []

    @wrap_model_call
    def counted(request: Any, handler: Any) -> Any:
        calls.append(request.model.memory_id)
        return handler(request)

    runtime = opened(script=words, verifier=FixedVerifier(memory=1.0), learn=False)
    memory_id = learn(runtime, "What is 7 times 9?")
    model = ChatELM(runtime=runtime)
    agent = create_agent(model, middleware=[ElmMemoryMiddleware(runtime), ModelRetryMiddleware(), counted])
    assert answer_of(agent.invoke(ASKED)).text == WITH_MEMORY
    assert sorted(calls, key=str) == sorted([None, memory_id], key=str)


async def test_a_thread_goes_on_and_its_state_is_plain(opened: Open) -> None:
    runtime = opened(script=words)
    agent = agent_on(runtime, checkpointer=saver())
    thread = {"configurable": {"thread_id": "t"}}
    agent.invoke(ASKED, thread)
    out = await agent.ainvoke({"messages": "And 9 times 8?"}, thread)
    assert [message.type for message in out["messages"]] == ["human", "ai", "human", "ai"]
    for snapshot in agent.get_state_history(thread):
        values = {name: value for name, value in snapshot.values.items() if name != "messages"}
        json.dumps(values)
    assert agent.get_state(thread).values.get("elm_turn") is None


async def test_many_at_once(opened: Open, learn: Learn) -> None:
    runtime = opened(script=words, verifier=FixedVerifier(memory=1.0), learn=False)
    learn(runtime, "What is 7 times 9?")
    agent = agent_on(runtime)
    outs = await asyncio.gather(
        *(agent.ainvoke({"messages": f"What is {n} times 7?"}) for n in range(8)),
        *(asyncio.to_thread(agent.invoke, {"messages": f"What is {n} times 8?"}) for n in range(8)),
    )
    assert {answer_of(out).text for out in outs} == {WITH_MEMORY}
    assert len(runtime.bank.uses("default")) == 16


async def test_a_run_that_is_cancelled_frees_both_rows(opened: Open, learn: Learn) -> None:
    runtime = opened(script=words, learn=False)
    learn(runtime, "What is 7 times 9?")
    written = runtime.model.written
    written.requests.clear()
    written.hold = threading.Event()
    running = asyncio.create_task(agent_on(runtime).ainvoke(ASKED))
    await asyncio.to_thread(wait_until, lambda: len(written.requests) == 2)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.to_thread(wait_until, lambda: written.given_up == 2)
    assert runtime.bank.uses("default") == []
