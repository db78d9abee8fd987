"""Spans and metrics of answering and learning, in memory and over the wire; nothing at all unless configured."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from elm_agent import Runtime, open_runtime, telemetry
from elm_agent.errors import SettingsError
from elm_agent.integrations.langgraph import build_graph
from elm_agent.protocols import ANSWER_STEPS
from elm_agent.telemetry import Telemetry
from elm_agent.testing.doubles import FakeModel, FakeTrainer

FIRST = {"question": "What is seventy-seven times eight?"}
SECOND = {"question": "What is seventy-seven times nine?"}


class Watching:
    """Telemetry into memory."""

    def __init__(self) -> None:
        self.spans = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.reader = InMemoryMetricReader()
        self.observe = Telemetry(
            tracer_provider=self.tracers,
            meter_provider=MeterProvider([self.reader], shutdown_on_exit=False),
        )

    def ended(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans.get_finished_spans() if span.name == name]

    def points(self, name: str) -> dict[tuple[str, ...], Any]:
        """The points of a metric by the values of their attributes."""
        data = self.reader.get_metrics_data()
        metrics = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
        found = [point for metric in metrics if metric.name == name for point in metric.data.data_points]
        return {tuple(str(value) for _, value in sorted(point.attributes.items())): point for point in found}


@pytest.fixture
def watching() -> Watching:
    return Watching()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Runtime]]:
    runtimes: list[Runtime] = []

    def open_(model: Any = None, trainer: Any = None, observe: Any = None, **settings: Any) -> Runtime:
        settings = {"home": tmp_path, "worker": {"mode": "inline"}, "index": "exact"} | settings
        model, trainer = model or FakeModel(), trainer or FakeTrainer()
        runtimes.append(open_runtime(model=model, trainer=trainer, observe=observe, **settings))
        return runtimes[-1]

    yield open_
    for runtime in runtimes:
        runtime.close()


def children(watching: Watching, parent: ReadableSpan) -> list[ReadableSpan]:
    assert parent.context is not None
    return [
        span
        for span in watching.spans.get_finished_spans()
        if span.parent is not None and span.parent.span_id == parent.context.span_id
    ]


# --- answering ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_answer_is_one_span_with_its_steps(
    opened: Callable[..., Runtime], watching: Watching, asynchronous: bool
) -> None:
    graph = build_graph(opened(observe=watching.observe))
    graph.invoke(FIRST)
    watching.spans.clear()
    out = asyncio.run(graph.ainvoke(SECOND)) if asynchronous else graph.invoke(SECOND)
    (answer,) = watching.ended("elm.answer")
    assert answer.parent is None
    assert answer.attributes is not None
    assert answer.attributes["elm.route"] == out["route"]
    assert answer.attributes["elm.use_id"] == out["use_id"]
    assert answer.attributes["elm.job_id"] == out["job_id"]
    steps = children(watching, answer)
    assert sorted(span.name for span in steps) == [
        "elm.generate", "elm.generate", "elm.retrieve", "elm.verify", "elm.write",
    ]  # fmt: skip
    by_name = {span.name: dict(span.attributes or {}) for span in steps}
    assert by_name["elm.retrieve"]["elm.memory_id"] == out["memory_id"]
    assert by_name["elm.retrieve"]["elm.similarity"] == pytest.approx(out["similarity"])
    sources = {(span.attributes or {})["elm.source"] for span in steps if span.name == "elm.generate"}
    assert sources == {"memory", "zero_shot"}
    for span in steps:
        assert span.start_time is not None
        assert span.end_time is not None
        assert answer.start_time is not None
        assert answer.start_time <= span.start_time <= span.end_time


def test_answers_at_once_have_a_span_each(opened: Callable[..., Runtime], watching: Watching) -> None:
    graph = build_graph(opened(observe=watching.observe, learn=False))

    async def ask_all() -> None:
        await asyncio.gather(*(graph.ainvoke({"question": f"What is {n} plus 1?"}) for n in range(8)))

    asyncio.run(ask_all())
    answers = watching.ended("elm.answer")
    assert len(answers) == 8
    assert all(len(children(watching, answer)) == 4 for answer in answers)


def test_an_answer_belongs_to_the_span_of_its_caller(opened: Callable[..., Runtime], watching: Watching) -> None:
    graph = build_graph(opened(observe=watching.observe))
    with watching.tracers.get_tracer("an application").start_as_current_span("request") as request:
        graph.invoke(FIRST)
    (answer,) = watching.ended("elm.answer")
    assert answer.parent is not None
    assert answer.parent.span_id == request.get_span_context().span_id


def test_no_answer_is_an_error(opened: Callable[..., Runtime], watching: Watching) -> None:
    graph = build_graph(opened(FakeModel(zero_shot_error=ValueError("secret words")), observe=watching.observe))
    with pytest.raises(ValueError, match="secret"):
        graph.invoke(FIRST)
    (answer,) = watching.ended("elm.answer")
    assert (answer.status.status_code, answer.status.description) == (StatusCode.ERROR, "ValueError")
    assert (answer.attributes or {})["elm.node"] == "generate_zero_shot"
    assert watching.points("elm.answers")[("none",)].value == 1
    with pytest.raises(ValueError, match="blank"):
        graph.invoke({"question": " "})
    assert watching.points("elm.answers")[("none",)].value == 2


def test_a_memory_that_fails_is_seen(opened: Callable[..., Runtime], watching: Watching) -> None:
    model = FakeModel()
    graph = build_graph(opened(model, observe=watching.observe))
    graph.invoke(FIRST)
    model.memory_error = RuntimeError("gone")
    watching.spans.clear()
    assert graph.invoke(SECOND)["route"] == "failed_memory"
    failed = [span for span in watching.ended("elm.generate") if (span.attributes or {}).get("elm.failed")]
    assert [(span.attributes or {})["elm.source"] for span in failed] == ["memory"]
    assert watching.points("elm.answers")[("failed_memory",)].value == 1


def test_metrics_count_and_time(opened: Callable[..., Runtime], watching: Watching) -> None:
    graph = build_graph(opened(observe=watching.observe))
    for question in (FIRST, SECOND, SECOND):
        graph.invoke(question)
    routes = {key[0]: point.value for key, point in watching.points("elm.answers").items()}
    assert sum(routes.values()) == 3
    assert routes["no_memory"] == 1
    assert {key[0] for key, point in watching.points("elm.tokens").items() if point.value > 0} == {
        "memory", "zero_shot",
    }  # fmt: skip
    timed = {key: point.count for key, point in watching.points("elm.step.duration").items()}
    assert timed[("zero_shot", "generate")] == 3 or timed[("generate", "zero_shot")] == 3
    assert timed[("retrieve",)] == timed[("verify",)] == 3
    assert watching.points("elm.jobs")[("done",)].value == 2


# --- learning -----------------------------------------------------------------------------------------------


def test_a_job_is_one_span_with_its_steps(opened: Callable[..., Runtime], watching: Watching) -> None:
    out = build_graph(opened(observe=watching.observe)).invoke(FIRST)
    (learn,) = watching.ended("elm.learn")
    attributes = dict(learn.attributes or {})
    assert (attributes["elm.job_id"], attributes["elm.outcome"]) == (out["job_id"], "done")
    assert str(attributes["elm.memory_id"]).startswith("mem_")
    steps = children(watching, learn)
    assert [span.name for span in steps] == ["elm.train_step", "elm.train_step", "elm.write"]
    assert [(span.attributes or {}).get("elm.step") for span in steps] == [0, 1, None]
    assert (steps[0].attributes or {})["elm.vote_share"] == 0.75


def test_a_job_that_fails_is_an_error(opened: Callable[..., Runtime], watching: Watching) -> None:
    trainer = FakeTrainer(error=RuntimeError("secret words"))
    build_graph(
        opened(trainer=trainer, observe=watching.observe, worker={"mode": "inline", "max_attempts": 1})
    ).invoke(FIRST)
    (learn,) = watching.ended("elm.learn")
    assert (learn.status.status_code, learn.status.description) == (StatusCode.ERROR, "RuntimeError")
    assert watching.points("elm.jobs")[("failed",)].value == 1


def test_a_worker_beside_an_agent_is_seen_too(
    opened: Callable[..., Runtime], watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "Telemetry", lambda: watching.observe)
    runtime = opened(worker={"mode": "external"}, telemetry={"mode": "global"})
    build_graph(runtime).invoke(FIRST)
    seen: list[str] = []
    runtime.worker(observe=lambda name, _detail: seen.append(name)).run(once=True)
    assert len(watching.ended("elm.learn")) == 1
    assert "job.done" in seen


# --- what is never sent, and what it costs --------------------------------------------------------------------


def test_no_text_is_sent(opened: Callable[..., Runtime], watching: Watching) -> None:
    def reply(_prompt: str, _memory_id: str | None) -> str:
        return "the private words \\boxed{4711}"

    trainer = FakeTrainer(majority_answer="4711")
    graph = build_graph(opened(FakeModel(reply=reply), trainer, observe=watching.observe))
    graph.invoke({"question": FIRST["question"], "subject": "Jane Doe"})
    graph.invoke(SECOND)
    sent = "".join(span.to_json() for span in watching.spans.get_finished_spans())
    assert "elm.answer" in sent
    for text in ("seventy", "private", "4711", "Jane"):
        assert text not in sent


def test_without_an_observer_nothing_is_told_or_loaded(opened: Callable[..., Runtime]) -> None:
    sys.modules.pop("elm_agent.telemetry", None)
    runtime = opened()
    assert runtime.observe is None
    build_graph(runtime).invoke(FIRST)
    assert "elm_agent.telemetry" not in sys.modules
    sys.modules["elm_agent.telemetry"] = telemetry


def test_an_observer_hears_every_step_and_its_failure_costs_nothing(opened: Callable[..., Runtime]) -> None:
    told: list[str] = []

    def observe(name: str, detail: dict[str, Any]) -> None:
        told.append(name)
        assert "question" not in detail or name == "job.claimed"
        raise RuntimeError("a broken listener")

    graph = build_graph(opened(observe=observe))
    graph.invoke(FIRST)
    assert graph.invoke(SECOND)["answer"] is not None
    assert set(ANSWER_STEPS) - set(told) == {"answer.failed", "answer.left"}


def test_runs_that_never_end_are_forgotten(watching: Watching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "MOST_OPEN", 3)
    for number in range(5):
        detail = {"answer_id": f"ans_{number}", "namespace": "default", "seconds": 0.0}
        watching.observe("answer.retrieved", detail)
    assert [(span.attributes or {})["elm.answer_id"] for span in watching.ended("elm.answer")] == ["ans_0", "ans_1"]
    watching.observe("answer.routed", {"answer_id": "ans_0", "seconds": 0.0, "route": "agreed"})  # late, and no error
    watching.observe("something.else", {})


# --- over the wire --------------------------------------------------------------------------------------------


class Collector(HTTPServer):
    def __init__(self) -> None:
        self.paths: list[str] = []
        super().__init__(("127.0.0.1", 0), _Taking)


class _Taking(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        self.rfile.read(int(self.headers["content-length"]))
        self.server.paths.append(self.path)
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def test_a_collector_is_sent_both_when_it_is_named(opened: Callable[..., Runtime]) -> None:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{collector.server_address[1]}/"
        runtime = opened(telemetry={"mode": "otlp", "endpoint": endpoint})
        build_graph(runtime).invoke(FIRST)
        runtime.close()
        collector.shutdown()
        thread.join()
    assert set(collector.paths) == {"/v1/traces", "/v1/metrics"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "otlp"}, "telemetry.mode is 'otlp' and telemetry.endpoint is None"),
        ({"endpoint": "http://localhost:4318"}, "telemetry.mode is 'off'"),
        ({"mode": "otlp", "endpoint": "localhost:4318"}, "expected http://HOST:PORT"),
        ({"mode": "loud"}, "telemetry.mode"),
    ],
)
def test_settings_that_contradict_are_refused(
    opened: Callable[..., Runtime], settings: dict[str, str], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        opened(telemetry=settings)


def test_a_missing_package_is_said_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "find_spec", lambda _name: None)
    with pytest.raises(SettingsError, match=r"pip install 'elm-agent\[otel\]'"):
        Telemetry()
