"""LangChain's own standard suites: the chat model on a tiny random model and on written-down tokens, the rest.

A random model cannot choose a tool; so what tests what a model chooses runs on the engine whose tokens are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import BaseTool
from langchain_tests.integration_tests import (
    ChatModelIntegrationTests,
    RetrieversIntegrationTests,
    ToolsIntegrationTests,
)
from langchain_tests.unit_tests import ChatModelUnitTests, ToolsUnitTests
from written_models import written_model

from elm_agent import Runtime, open_runtime
from elm_agent.integrations.langchain import ChatELM, ElmMemoryRetriever, ask_tool, memory_tools
from elm_agent.testing.doubles import FakeTrainer, FixedVerifier
from elm_agent.testing.tiny import write_tiny_model

QUESTIONS = ("What is 7 times 8?", "What is 6 plus 9?", "What is 9 times 4?", "What is 2 minus 1?")
RUNTIMES: dict[str, Runtime] = {}


@pytest.fixture(scope="module", autouse=True)
def runtimes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The suites ask for their parameters without fixtures, so runtimes are kept where these can see them."""
    home = tmp_path_factory.mktemp("standard")
    RUNTIMES["tiny"] = open_runtime(
        model=str(write_tiny_model(home / "model")),
        home=home / "tiny",
        max_new_tokens=12,
        offline=True,
        index="exact",
    )
    RUNTIMES["written"] = open_runtime(
        model=written_model(Path(home / "written")),
        trainer=FakeTrainer(),
        verifier=FixedVerifier(),
        home=home / "bank",
        max_new_tokens=200,
        worker={"mode": "inline"},
        index="exact",
    )
    graph = ask_tool(RUNTIMES["written"])
    for question in QUESTIONS:
        graph.invoke({"question": question})
    yield
    for runtime in RUNTIMES.values():
        runtime.close()
    RUNTIMES.clear()


def _named(name: str) -> Callable[[], Runtime]:
    return lambda: RUNTIMES[name]


class _ChatELM:
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatELM

    @property
    def supports_model_override(self) -> bool:
        return False  # a runtime has one model


class _Tiny(_ChatELM):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"runtime": _named("tiny")}

    @property
    def has_tool_calling(self) -> bool:
        return False  # its template has no place for tools

    @property
    def has_structured_output(self) -> bool:
        return False


class _Written(_ChatELM):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"runtime": _named("written")}


class TestTinyUnit(_Tiny, ChatModelUnitTests):
    pass


class TestTinyIntegration(_Tiny, ChatModelIntegrationTests):
    pass


class TestWrittenUnit(_Written, ChatModelUnitTests):
    pass


class TestWrittenIntegration(_Written, ChatModelIntegrationTests):
    pass


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return ElmMemoryRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"runtime": _named("written")}

    @property
    def retriever_query_example(self) -> str:
        return "What is 7 times 9?"


def _tool(name: str) -> BaseTool:
    tools = [*memory_tools(_named("written")), ask_tool(_named("written"))]
    return next(tool for tool in tools if tool.name == name)


class _Recall:
    @property
    def tool_constructor(self) -> BaseTool:
        return _tool("recall_memories")

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"question": QUESTIONS[0], "k": 2}


class _Why:
    @property
    def tool_constructor(self) -> BaseTool:
        return _tool("why_memory")

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"memory_id": RUNTIMES["written"].bank.memories("default", limit=1)[0].id}


class _Ask:
    @property
    def tool_constructor(self) -> BaseTool:
        return _tool("ask_elm")

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"question": QUESTIONS[0]}


class _Feedback:
    @property
    def tool_constructor(self) -> BaseTool:
        return _tool("give_feedback")

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"use_id": RUNTIMES["written"].bank.uses("default", limit=1)[0].id, "verdict": "right"}


class TestRecallUnit(_Recall, ToolsUnitTests):
    pass


class TestRecallIntegration(_Recall, ToolsIntegrationTests):
    pass


class TestWhyUnit(_Why, ToolsUnitTests):
    pass


class TestWhyIntegration(_Why, ToolsIntegrationTests):
    pass


class TestAskUnit(_Ask, ToolsUnitTests):
    pass


class TestAskIntegration(_Ask, ToolsIntegrationTests):
    pass


class TestFeedbackUnit(_Feedback, ToolsUnitTests):
    pass


class TestFeedbackIntegration(_Feedback, ToolsIntegrationTests):
    pass
