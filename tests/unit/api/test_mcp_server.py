"""The tools, called by the client of the official package: over standard input and output, and over HTTP."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from api_calls import (
    ACCESS,
    ADMIN,
    ALICE,
    BOB,
    LONG,
    Open,
    Watched,
    bearer,
    eventually,
    given_up,
    serving,
)
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from elm_agent import Runtime
from elm_agent.api.access import Access
from elm_agent.api.guard import LOOPBACK
from elm_agent.api.serving import Door
from elm_agent.api.tools import make_mcp_app, make_server
from elm_agent.testing.tiny import write_tiny_model

QUESTION = {"question": "What is 7 times 8?"}
NAMES = ["ask", "recall", "why", "feedback", "memories", "jobs"]


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    told: dict[str, Any] = result.structured_content
    return told


async def refusal(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    (content,) = result.content
    text: str = content.text
    assert "Traceback" not in text
    return text


async def every_verb(client: Client) -> None:
    """What any client can do, over any transport."""
    listed = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert list(listed) == NAMES
    assert all(tool.description and tool.output_schema for tool in listed.values())
    assert "ctx" not in listed["ask"].input_schema["properties"]
    first = await call(client, "ask", **QUESTION)
    assert (first["route"], first["memory_id"]) == ("no_memory", None)
    while (memories := (await call(client, "memories"))["memories"]) == []:
        await asyncio.sleep(0.05)  # until it is learnt
    (job,) = (await call(client, "jobs"))["jobs"]
    assert (job["id"], job["question"]) == (first["job_id"], QUESTION["question"])
    assert (await call(client, "jobs", job_id=job["id"]))["jobs"][0]["memory_id"] == memories[0]["id"]
    second = await call(client, "ask", question="What is 7 times 9?", learn=False, explain=True, tier="normal")
    assert second["explanation"]["budget"]["tier"] == "normal"
    if second["memory_id"] is None:  # what a random model has learnt need not be admitted, and then it must not serve
        assert second["reason"]
        assert (await call(client, "why", memory_id=memories[0]["id"]))["uses"] == []
        assert "NotFound" in await refusal(client, "feedback", use_id="use_none", verdict="right")
        return
    assert second["memory_id"] == memories[0]["id"]
    found = (await call(client, "recall", **QUESTION, limit=1))["found"]
    assert [hit["memory"]["id"] for hit in found] == [second["memory_id"]]
    why = await call(client, "why", memory_id=second["memory_id"])
    assert [use["id"] for use in why["uses"]] == [second["use_id"]]
    report = (await call(client, "feedback", use_id=second["use_id"], verdict="right"))["report"]
    assert (report["feedback"], report["recorded"]) == ("right", True)


# --- bad input ----------------------------------------------------------------------------------------------


async def test_bad_input_is_told_in_one_sentence(runtime: Runtime) -> None:
    async with Client(make_server(runtime)) as client:
        assert "InputError: the question is blank" in await refusal(client, "ask", question=" ")
        assert "question" in await refusal(client, "ask")
        assert "20000" in await refusal(client, "ask", question="a" * 20_001)
        assert "takes" in await refusal(client, "ask", question="a" * 5_000)
        assert "min_similarity" in await refusal(client, "ask", question="hi", min_similarity=2)
        assert "tier" in await refusal(client, "ask", question="hi", tier="lavish")
        assert "NotFound: no job 'job_none'" in await refusal(client, "jobs", job_id="job_none")
        assert "NotFound: no memory 'mem_none'" in await refusal(client, "why", memory_id="mem_none")
        assert "NotFound: no use 'use_none'" in await refusal(client, "feedback", use_id="use_none", verdict="wrong")
        assert "verdict" in await refusal(client, "feedback", use_id="use_none", verdict="perhaps")
        assert "cannot be ordered" in await refusal(client, "memories", order="question")
        assert "limit" in await refusal(client, "memories", limit=0)
        assert "Unknown tool" in await refusal(client, "purge")
        assert (await call(client, "memories"))["memories"] == []


async def test_over_standard_input_there_is_one_namespace(runtime: Runtime) -> None:
    runtime.bind("other")
    async with Client(make_server(runtime)) as client:
        assert "'other' is not in this bank" in await refusal(client, "memories", namespace="other")
        assert "'none' is not in this bank" in await refusal(client, "memories", namespace="none")
        assert await call(client, "memories", namespace="default") == {"memories": []}


async def test_a_crash_keeps_its_words_to_itself(runtime: Runtime) -> None:
    runtime.model.zero_shot_error = RuntimeError("secret of the house")  # type: ignore[attr-defined]
    async with Client(make_server(runtime)) as client:
        assert "secret" not in await refusal(client, "ask", **QUESTION)


@pytest.mark.parametrize("over_http", [False, True])
async def test_a_call_that_is_cancelled_frees_its_row(agent: Open, over_http: bool) -> None:
    runtime = agent(LONG)
    model = runtime.model
    assert isinstance(model, Watched)
    with served(runtime, Door(Access(), None)) as url:
        async with connected(url, None) if over_http else Client(make_server(runtime)) as client:
            with anyio.move_on_after(2.0) as scope:
                await client.call_tool("ask", {"question": "Tell me."})
            assert scope.cancelled_caught
            await asyncio.to_thread(eventually, lambda: bool(model.asked) and all(map(given_up, model.asked)))


# --- over HTTP ----------------------------------------------------------------------------------------------


@contextmanager
def served(runtime: Runtime, door: Door) -> Iterator[str]:
    with serving(make_mcp_app(runtime, door=door)) as url:
        yield f"{url}/mcp"


@asynccontextmanager
async def connected(url: str, token: str | None) -> AsyncIterator[Client]:
    headers = {} if token is None else bearer(token)
    async with (
        httpx2.AsyncClient(headers=headers, trust_env=False, timeout=120) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


async def test_every_verb_over_http(opened: Open) -> None:
    with served(opened(), Door(ACCESS, None)) as url:
        async with connected(url, ADMIN) as client:
            await every_verb(client)


async def test_a_token_sees_its_own_namespaces(opened: Open) -> None:
    with served(opened(), Door(ACCESS, None)) as url:
        async with connected(url, BOB) as client:
            await call(client, "ask", **QUESTION)  # in its own, since it has one
            assert {memory["namespace"] for memory in (await call(client, "memories"))["memories"]} == {"bob"}
            memory_id = (await call(client, "memories"))["memories"][0]["id"]
            for name in ("default", "alice", "none"):
                assert f"NotFound: namespace '{name}' is not in this bank" in await refusal(
                    client, "why", memory_id=memory_id, namespace=name
                )
        async with connected(url, ALICE) as client:
            assert (await call(client, "memories"))["memories"] == []
            assert "NotFound" in await refusal(client, "why", memory_id=memory_id)
            assert "NotFound" in await refusal(client, "memories", namespace="bob")
            assert "NotFound" in await refusal(client, "jobs", namespace="bob")


async def test_without_a_token_there_is_no_server(opened: Open) -> None:
    with served(opened(), Door(ACCESS, None)) as url, httpx2.Client(trust_env=False) as http:
        for headers in ({}, bearer("x" * 30)):
            reply = http.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, headers=headers)
            assert reply.status_code == 401
            assert reply.json()["error"]["type"] == "Unauthorized"
    with served(opened(), Door(Access(), LOOPBACK)) as url, httpx2.Client(trust_env=False) as http:
        reply = http.post(url, json={}, headers={"host": "evil.example"})
        assert reply.status_code == 421


# --- over standard input and output -------------------------------------------------------------------------


async def test_every_verb_over_standard_input_and_output(tmp_path: Path) -> None:
    """The command itself, with a real tiny model: nothing but the protocol is on its standard output."""
    variables = {
        "ELM_MODEL": str(write_tiny_model(tmp_path / "tiny")),
        "ELM_HOME": str(tmp_path / "home"),
        "ELM_MAX_NEW_TOKENS": "6",
        "ELM_LEARNING__STEPS": "1",
        "ELM_LEARNING__ROLLOUTS": "2",
        "ELM_LEARNING__MAX_NEW_TOKENS": "4",
        "ELM_INDEX": "exact",
        "ELM_LOG_FORMAT": "json",
        "OMP_NUM_THREADS": "1",
    }
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "elm_agent.cli", "mcp"], env=dict(os.environ) | variables
    )
    async with Client(command, read_timeout_seconds=120) as client:
        await every_verb(client)
