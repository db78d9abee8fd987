"""``langgraph dev`` itself, as a process: background runs, without leave to block, with strict msgpack.

It runs every part that answers and learns: ranking by utility, a calibrated threshold, admission with its probe,
tiers and OpenTelemetry.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from langgraph_sdk import get_sync_client
from langgraph_sdk.client import SyncLangGraphClient

from elm_agent.testing.tiny import write_tiny_model

ROOT = Path(__file__).parents[2]
DEADLINE = 300.0  # seconds, for a machine that does much else
SETTINGS = """
index = "exact"
max_new_tokens = 6
task = "text"
[learning]
steps = 1
rollouts = 2
max_new_tokens = 4
[worker]
mode = "external"
[utility]
ranking = "ucb"
[abstention]
mode = "calibrated"
[admission]
probe = true
[budget]
tier = "auto"
[telemetry]
mode = "otlp"
endpoint = "{collector}"
"""

SLEEPER = """
import time
from typing import TypedDict
from langgraph.graph import END, START, StateGraph


class Nap(TypedDict, total=False):
    seconds: float


async def nap(state: Nap) -> Nap:
    time.sleep(state["seconds"])
    return {}


graph = StateGraph(Nap).add_node("nap", nap).add_edge(START, "nap").add_edge("nap", END).compile()
"""  # what the server must refuse, or it does not watch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("langgraph_api") is None,
    reason="the server package is not installed (pip install 'langgraph-cli[inmem]')",
)


@contextmanager
def collecting() -> Iterator[tuple[str, list[bytes]]]:
    """The URL of an OTLP collector, and the bodies that it was sent."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def developing(folder: Path, log: Path, **variables: str) -> Iterator[str]:
    """The URL of ``langgraph dev`` on a copy of the graphs, and the sleeper; it writes into its working folder."""
    shutil.copytree(ROOT / "graphs", folder / "graphs")
    (folder / "graphs" / "sleeper.py").write_text(SLEEPER)
    named = json.loads((ROOT / "langgraph.json").read_text("utf-8"))
    named["graphs"]["sleeper"] = "./graphs/sleeper.py:graph"
    (folder / "langgraph.json").write_text(json.dumps(named))
    port = free_port()
    command = [sys.executable, "-m", "langgraph_cli", "dev", "--no-browser", "--no-reload", "--port", str(port)]
    quiet = {"LANGGRAPH_CLI_NO_ANALYTICS": "1", "LANGSMITH_TRACING": "false", "NO_PROXY": "127.0.0.1"}
    strict = {"LANGGRAPH_STRICT_MSGPACK": "true", "OMP_NUM_THREADS": "1", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with log.open("wb") as written:
        server = subprocess.Popen(
            [*command, "--n-jobs-per-worker", "4", "--server-log-level", "INFO"],
            cwd=folder,
            env=os.environ | quiet | strict | {"PYTHONPATH": paths} | variables,
            stdout=written,
            stderr=subprocess.STDOUT,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(server, url, log)
            yield url
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(60)
            server.kill()
            server.wait()


def _wait_for(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text("utf-8")[-3000:]
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/ok", trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(log.read_text("utf-8")[-3000:])


class Background:
    """Runs that are begun and joined later, as a client of the server asks for them."""

    def __init__(self, client: SyncLangGraphClient) -> None:
        self.client = client

    def begin(self, graph: str, asked: Any, **how: Any) -> tuple[str, str]:
        thread = self.client.threads.create()["thread_id"]
        return thread, self.client.runs.create(thread, graph, input=asked, **how)["run_id"]

    def end(self, begun: tuple[str, str]) -> dict[str, Any]:
        state: Any = self.client.runs.join(*begun)
        run = self.client.runs.get(*begun)
        assert run["status"] == "success", state
        return dict(state)

    def run(self, graph: str, asked: Any, **how: Any) -> dict[str, Any]:
        return self.end(self.begin(graph, asked, **how))


def test_background_runs_block_nothing_and_keep_plain_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    log, settings = tmp_path / "log.txt", tmp_path / "elm.toml"
    (tmp_path / "server").mkdir()
    with collecting() as (collector, sent):
        settings.write_text(SETTINGS.replace("{collector}", collector))
        variables = {
            "ELM_MODEL": str(write_tiny_model(tmp_path / "model")),
            "ELM_HOME": str(tmp_path / "bank"),
            "ELM_SETTINGS": str(settings),
        }
        with developing(tmp_path / "server", log, **variables) as url:
            try:
                with closing(get_sync_client(url=url, timeout=DEADLINE)) as client:
                    _story(Background(client))
            except BaseException as error:
                error.add_note(log.read_text("utf-8")[-5000:])
                raise
        told = b"".join(sent)
    for span in (b"elm.answer", b"elm.retrieve", b"elm.generate", b"elm.verify", b"elm.learn", b"elm.train_step"):
        assert span in told, span
    assert b"What is" not in told
    text = log.read_text("utf-8")
    assert len(set(re.findall(r"Blocking call to (\S+)", text))) == 1, "the sleeper's alone"
    assert re.search(r"unregistered type|Deserializing", text) is None, text[-5000:]


def _story(server: Background) -> None:
    """Asked, learnt in a run of its own, asked again with the context of each run, streamed."""
    ada: dict[str, Any] = {"namespace": "ada"}
    begun = [server.begin("solver", {"question": f"What is {n} times 8?"}, context=ada) for n in range(3)]
    outs = [server.end(one) for one in begun]
    assert [out["route"] for out in outs] == ["no_memory"] * 3
    assert len({out["job_id"] for out in outs}) == 3
    assert server.run("consolidate", {})["jobs"] == 3
    near = ada | {"min_similarity": -1.0, "explain": True}
    for tier in ("auto", "cheap", "normal", "thorough"):
        context = near | {"tier": tier, "learn": False}
        again = server.run("solver", {"question": "What is 7 times 9?"}, context=context)
        assert again["job_id"] is None
        assert again["explanation"]["budget"]["tier"] in ("normal", "thorough")
        assert again["route"] in ("agreed", "memory", "zero_shot", "no_memory"), again["reason"]
    elsewhere = server.run("solver", {"question": "What is 7 times 9?"}, context={"namespace": "ben", "learn": False})
    assert (elsewhere["route"], elsewhere["memory_id"], elsewhere["job_id"]) == ("no_memory", None, None)
    lesson = server.run("tutor", {"learner": "ada", "question": "What is 7 times 8?", "hint_level": 1})
    assert lesson["hint_level"] == 2
    thread = server.client.threads.create()["thread_id"]
    asked: Any = {"input": {"question": "What is 2 plus 2?"}, "context": ada | {"pieces": True}}
    parts = list(server.client.runs.stream(thread, "solver", stream_mode=["custom"], **asked))
    events = [part.data["event"] for part in parts if part.event == "custom"]
    assert events[0] == "elm.retrieved"
    assert "elm.piece" in events
    assert events[-1] == "elm.consolidation.queued"
    history = server.client.threads.get_history(thread)
    assert history[0]["values"]["options"]["namespace"] == "ada"
    blocked = server.begin("sleeper", {"seconds": 0.01})
    refused = server.begin("solver", {"question": "hi"}, context={"namespace": "../x"})
    for one in (blocked, refused):
        with suppress(Exception):
            server.client.runs.join(*one)
        assert server.client.runs.get(*one)["status"] == "error"
