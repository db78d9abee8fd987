"""An agent of ``create_agent`` never stops for a person, who is asked afterwards: its model would be called again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver
from written_models import words

from elm_agent.integrations.langchain import ChatELM, ElmMemoryMiddleware
from elm_agent.testing.doubles import FixedVerifier

ASKED = {"messages": "What is 9 times 7?"}


@pytest.mark.parametrize("mode", ["interrupt", "queue"])
async def test_the_plain_answer_is_returned_and_the_other_waits(
    opened: Callable[..., Any], learn: Callable[..., str], mode: str
) -> None:
    runtime = opened(script=words, verifier=FixedVerifier(memory=1.0), learn=False, review={"overrides": mode})
    memory_id = learn(runtime, "What is 7 times 9?")
    middleware = [ElmMemoryMiddleware(runtime)]
    agent: Any = create_agent(ChatELM(runtime=runtime), [], middleware=middleware, checkpointer=InMemorySaver())
    for thread, invoke in (("a", agent.invoke), ("b", agent.ainvoke)):
        out = invoke(ASKED, {"configurable": {"thread_id": thread}})
        message = (out if isinstance(out, dict) else await out)["messages"][-1]
        assert (message.text, message.response_metadata["route"]) == ("I think it is 56.", "deferred")
    uses = runtime.bank.reviews.answers("default")
    assert [(use.memory_id, use.memory_answer, use.answer) for use in uses] == [(memory_id, "63", "56")] * 2
