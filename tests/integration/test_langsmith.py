"""What a LangSmith server is told of an answer, by one that runs here: nothing, unless tracing is switched on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langsmith import Client
from langsmith.run_helpers import tracing_context

from elm_agent import Runtime, open_runtime
from elm_agent.integrations.langchain import ChatELM, ElmMemoryMiddleware
from elm_agent.integrations.langgraph import build_graph
from elm_agent.testing.doubles import FakeModel, FakeTrainer, FixedVerifier

FIRST, SECOND = {"question": "What is 7 times 8?"}, {"question": "What is 7 times 9?"}
CONTEXT: Any = {"namespace": "ada"}


class Collector:
    """A server that keeps the runs it is told of, as they were when they ended."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self._take()

            def do_PATCH(self) -> None:
                self._take()

            def _take(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                told = {name: value for name, value in body.items() if value is not None}
                collector.runs.setdefault(body.get("id") or self.path.rpartition("/")[2], {}).update(told)
                self.send_response(202)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def ids(self, name: str) -> list[dict[str, Any]]:
        """Our metadata of the runs of that name which have some."""
        metadata = [run["extra"].get("metadata", {}) for run in self.runs.values() if run["name"] == name]
        ours = [{key[4:]: value for key, value in one.items() if key.startswith("elm_")} for one in metadata]
        return [one for one in ours if one]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    made = Collector()
    monkeypatch.setenv("LANGSMITH_ENDPOINT", made.url)
    monkeypatch.setenv("LANGSMITH_API_KEY", "no key of anybody")
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


@contextmanager
def tracing(collector: Collector) -> Iterator[None]:
    client = Client(api_url=collector.url, api_key="no key of anybody", auto_batch_tracing=False)
    with tracing_context(enabled=True, client=client, project_name="here"):
        yield


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with open_runtime(
        model=FakeModel(reply=lambda _prompt, memory_id: "\\boxed{2}" if memory_id else "\\boxed{1}"),
        trainer=FakeTrainer(),
        verifier=FixedVerifier(),
        home=tmp_path,
        worker={"mode": "inline"},
        index="exact",
    ) as made:
        yield made


async def test_runs_of_nodes_carry_the_ids_of_memory_job_and_namespace(
    runtime: Runtime, collector: Collector
) -> None:
    graph = build_graph(runtime)
    graph.invoke(FIRST, context=CONTEXT)
    assert collector.runs == {}, "nobody switched tracing on"
    for asynchronous in (False, True):
        collector.runs.clear()
        with tracing(collector):
            out = (
                await graph.ainvoke(SECOND, context=CONTEXT)
                if asynchronous
                else graph.invoke(SECOND, context=CONTEXT)
            )
        memory = {"namespace": "ada", "memory_id": out["memory_id"]}
        home = {"memory_namespace": "ada"}
        assert collector.ids("retrieve_memory") == [memory | home]
        assert collector.ids("generate_with_memory") == [memory | home]
        assert collector.ids("generate_zero_shot") == [{"namespace": "ada"}]
        assert collector.ids("verify_and_route") == [memory | {"route": "memory"}]
        assert collector.ids("consolidate") == [memory | {"use_id": out["use_id"], "job_id": out["job_id"]}]


def test_an_agents_model_calls_carry_them_too(runtime: Runtime, collector: Collector) -> None:
    build_graph(runtime).invoke(FIRST)
    (memory,) = runtime.bank.memories("default")
    agent = create_agent(ChatELM(runtime=runtime), middleware=[ElmMemoryMiddleware(runtime)])
    with tracing(collector):
        agent.invoke({"messages": SECOND["question"]})
    assert {"memory_id": memory.id} in collector.ids("ChatELM")
    (told,) = collector.ids("ElmMemoryMiddleware.wrap_model_call")
    assert (told["memory_id"], told["route"], told["namespace"]) == (memory.id, "memory", "default")
