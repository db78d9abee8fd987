"""Tools and retriever on one bank, and the graph on ``messages``: what they tell, and how they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from written_models import obliging, words

from elm_agent import MemoryState
from elm_agent.errors import InputError
from elm_agent.integrations.langchain import ChatELM, ElmMemoryRetriever, ask_tool, memory_tools
from elm_agent.integrations.langgraph import RunContext, build_messages_graph

Open = Callable[..., Any]
Learn = Callable[..., str]
FIRST, SECOND = "What is 7 times 8?", "What is 7 times 9?"


def called(tools: Any, name: str, **arguments: Any) -> Any:
    return json.loads({tool.name: tool for tool in tools}[name].invoke(arguments))


# --- tools ----------------------------------------------------------------------------------------------------


async def test_asking_answers_and_learns(opened: Open) -> None:
    runtime = opened(script=words)
    tool = ask_tool(runtime)
    first = json.loads(tool.invoke({"question": FIRST}))
    assert first == {
        "answer": "56",
        "text": "I think it is 56.",
        "route": "no_memory",
        "memory_id": None,
        "use_id": None,
    }
    second = json.loads(await tool.ainvoke({"question": SECOND}))
    assert (second["answer"], second["route"]) == ("63", "memory")
    assert second["memory_id"] == runtime.bank.uses("default")[0].memory_id


def test_an_agent_asks_it(opened: Open) -> None:
    """The agent's own context reaches the graph that the tool runs."""
    runtime = opened(script=obliging)
    agent = create_agent(ChatELM(runtime=runtime), [ask_tool(runtime)], context_schema=RunContext)
    out = agent.invoke({"messages": "Ask 'What is 7 times 8?'"}, context={"namespace": "ada"})
    assert json.loads(out["messages"][2].content)["answer"] == "56"
    assert [job.question for job in runtime.bank.jobs.list(namespace="ada")] == [FIRST]


def test_memories_are_recalled_and_explained(opened: Open, learn: Learn) -> None:
    runtime = opened(script=words)
    ids = {learn(runtime, FIRST), learn(runtime, SECOND)}
    tools = memory_tools(runtime)
    found = called(tools, "recall_memories", question=FIRST)
    assert {one["memory_id"] for one in found} == ids
    assert found[0]["similarity"] >= found[1]["similarity"]
    assert len(called(tools, "recall_memories", question=FIRST, k=1)) == 1
    why = called(tools, "why_memory", memory_id=found[0]["memory_id"])
    assert (why["majority_answer"], why["vote_shares"]) == ("42", [0.75, 0.75])
    assert next(event["what"] for event in why["history"]) == "created"
    assert called(memory_tools(runtime, namespace="nobody"), "recall_memories", question=FIRST) == []


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_all_tools_of_one_agent_look_into_the_namespace_of_its_run(
    opened: Open, learn: Learn, asynchronous: bool
) -> None:
    runtime = opened(script=words, learn=False)
    of_default, of_ben = learn(runtime, FIRST), learn(runtime, FIRST, "ben")
    named = {tool.name: tool for tool in (ask_tool(runtime), *memory_tools(runtime))}
    retriever = ElmMemoryRetriever(runtime=runtime)

    def told(state: MessagesState) -> Any:
        use_id = json.loads(named["ask_elm"].invoke({"question": SECOND}))["use_id"]
        (found,) = json.loads(named["recall_memories"].invoke({"question": FIRST}))
        (document,) = retriever.invoke(state["messages"][-1].text)
        why = json.loads(named["why_memory"].invoke({"memory_id": found["memory_id"]}))
        noted = json.loads(named["give_feedback"].invoke({"use_id": use_id, "verdict": "right"}))
        assert found["memory_id"] == document.id == why["memory_id"]
        assert noted["recorded"]
        return {"messages": [AIMessage(found["memory_id"])]}

    async def atold(state: MessagesState) -> Any:
        use_id = json.loads(await named["ask_elm"].ainvoke({"question": SECOND}))["use_id"]
        (found,) = json.loads(await named["recall_memories"].ainvoke({"question": FIRST}))
        (document,) = await retriever.ainvoke(state["messages"][-1].text)
        assert json.loads(await named["give_feedback"].ainvoke({"use_id": use_id, "verdict": "right"}))["recorded"]
        assert found["memory_id"] == document.id
        return {"messages": [AIMessage(found["memory_id"])]}

    graph = StateGraph(MessagesState, context_schema=RunContext)
    agent = graph.add_node("look", atold if asynchronous else told).add_edge(START, "look").compile()
    for context, expected in (({"namespace": "ben"}, of_ben), ({}, of_default), (None, of_default)):
        call: Any = {"messages": FIRST}
        out = await agent.ainvoke(call, context=context) if asynchronous else agent.invoke(call, context=context)
        assert out["messages"][-1].text == expected
    assert [use.feedback for use in runtime.bank.uses("ben")] == ["right"]
    assert [use.feedback for use in runtime.bank.uses("default")] == ["right", "right"]


def test_feedback_is_noted(opened: Open, learn: Learn) -> None:
    runtime = opened(script=words, learn=False)
    learn(runtime, FIRST)
    tools = memory_tools(runtime)
    use_id = json.loads(ask_tool(runtime).invoke({"question": SECOND}))["use_id"]
    report = called(tools, "give_feedback", use_id=use_id, verdict="right", answer="63")
    assert (report["recorded"], report["feedback"]) == (True, "right")
    (use,) = runtime.bank.uses("default")
    assert (use.feedback, use.answer) == ("right", "63")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("recall_memories", {"question": "  "}),
        ("why_memory", {"memory_id": "mem_0"}),
        ("give_feedback", {"use_id": "use_0", "verdict": "right"}),
    ],
)
async def test_what_cannot_be_done_is_an_answer(opened: Open, name: str, arguments: Any) -> None:
    tools = {tool.name: tool for tool in memory_tools(opened())}
    sync, asynchronous = tools[name].invoke(arguments), await tools[name].ainvoke(arguments)
    assert sync == asynchronous
    assert set(json.loads(sync)) == {"error"}


# --- retriever ------------------------------------------------------------------------------------------------


async def test_documents_are_memories(opened: Open, learn: Learn) -> None:
    runtime = opened()
    memory_id = learn(runtime, FIRST)
    retriever = ElmMemoryRetriever(runtime=runtime)
    (document,) = retriever.invoke(SECOND)
    assert await retriever.ainvoke(SECOND) == [document]
    assert (document.id, document.page_content) == (memory_id, f"{FIRST}\n42")
    assert document.metadata["memory_id"] == memory_id
    assert -1 <= document.metadata["similarity"] <= 1
    assert retriever.invoke(SECOND, k=1) == [document]
    assert ElmMemoryRetriever(runtime=runtime, min_similarity=1.0).invoke(SECOND) == []
    assert ElmMemoryRetriever(runtime=runtime, namespace="nobody").invoke(SECOND) == []
    runtime.bank.transition("default", memory_id, MemoryState.RETIRED, actor="test", reason="a test")
    assert retriever.invoke(SECOND) == []
    with pytest.raises(InputError):
        retriever.invoke("\x00")


# --- the graph on messages ------------------------------------------------------------------------------------


async def test_a_chat_is_answered(opened: Open) -> None:
    graph = build_messages_graph(opened(script=words))
    out = graph.invoke({"messages": [SystemMessage("Be brief."), HumanMessage(FIRST), AIMessage("Hm.")]})
    assert [message.type for message in out["messages"]] == ["system", "human", "ai", "ai"]
    told = out["messages"][-1]
    assert (told.text, told.response_metadata["answer"], told.response_metadata["route"]) == (
        "I think it is 56.",
        "56",
        "no_memory",
    )
    again = (await graph.ainvoke({"messages": SECOND}))["messages"][-1]
    assert (again.response_metadata["route"], again.response_metadata["answer"]) == ("memory", "63")
    with pytest.raises(InputError, match="no human message"):
        graph.invoke({"messages": [AIMessage("Hm.")]})


class Tenant(TypedDict, total=False):
    namespace: str
    colour: str


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_it_is_a_node_with_the_parents_context_and_threads(opened: Open, asynchronous: bool) -> None:
    runtime = opened(script=words)
    parent = (
        StateGraph(MessagesState, context_schema=Tenant)
        .add_node("memory", build_messages_graph(runtime))
        .add_edge(START, "memory")
        .add_edge("memory", END)
        .compile(checkpointer=InMemorySaver())
    )
    thread: Any = {"configurable": {"thread_id": "t"}}
    context: Any = {"namespace": "ada", "colour": "red"}
    for question in (FIRST, SECOND):
        asked: Any = {"messages": question}
        if asynchronous:
            await parent.ainvoke(asked, thread, context=context)
        else:
            parent.invoke(asked, thread, context=context)
    messages = parent.get_state(thread).values["messages"]
    assert [message.type for message in messages] == ["human", "ai", "human", "ai"]
    assert [message.response_metadata.get("route") for message in messages[1::2]] == ["no_memory", "memory"]
    assert {job.namespace for job in runtime.bank.jobs.list()} == {"ada"}
    asked = {"messages": "What is 7 times 7?"}
    seen = [message.text for message, _ in parent.stream(asked, thread, context=context, stream_mode="messages")]
    assert seen == ["With this in mind it is 63."]
    events = [
        e["event"] for _, e in parent.stream(asked, thread, context=context, stream_mode="custom", subgraphs=True)
    ]
    assert events[0] == "elm.retrieved"
