"""Observed steps become OpenTelemetry spans and metrics. The only file that speaks to OpenTelemetry.

Knows the names of ``ANSWER_STEPS`` and ``LEARN_STEPS``, nothing of who tells them. Texts are never sent: ids,
numbers, routes and states alone.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from elm_agent.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

MOST_OPEN = 4096  # runs that have begun and not ended; a graph that waits for a person may never
_NAME = "elm_agent"
_BILLION = 1_000_000_000

Detail = Mapping[str, Any]


class Telemetry:
    """An ``Observer`` that keeps one span for each answer and each job, with a child for each of their steps.

    Without providers it uses those that the application has set for its whole process. An answer's span is a child of
    whatever span its caller is in.

    Spans: ``elm.answer`` with ``elm.retrieve``, ``elm.generate``, ``elm.verify``, ``elm.write``; ``elm.learn`` with
    ``elm.train_step`` and ``elm.write``. Metrics: the histogram ``elm.step.duration`` (s) by ``elm.step``, and the
    counters ``elm.answers`` by route, ``elm.tokens`` by source, ``elm.jobs`` by outcome.
    """

    def __init__(
        self, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        _need()
        from opentelemetry import metrics, trace

        self._tracer = (tracer_provider or trace.get_tracer_provider()).get_tracer(_NAME)
        meter = (meter_provider or metrics.get_meter_provider()).get_meter(_NAME)
        self._durations = meter.create_histogram("elm.step.duration", "s", "how long a step of a run took")
        self._answers = meter.create_counter("elm.answers", "{answer}", "questions that were answered, or not")
        self._tokens = meter.create_counter("elm.tokens", "{token}", "tokens drawn for answers")
        self._jobs = meter.create_counter("elm.jobs", "{job}", "learning jobs that ended")
        self._open: OrderedDict[str, Span] = OrderedDict()
        self._trained: dict[str, int] = {}  # by job, when its training ended
        self._lock = threading.Lock()
        self._steps: dict[str, Callable[[Detail], None]] = {
            "answer.retrieved": self._retrieved,
            "answer.generated": self._generated,
            "answer.routed": self._routed,
            "answer.noted": self._noted,
            "answer.failed": self._not_answered,
            "answer.left": self._left,
            "job.claimed": self._claimed,
            "train.step": self._step,
            "train.done": self._train_done,
            "index.fed": self._written,
        }

    def __call__(self, name: str, detail: dict[str, Any]) -> None:
        step = self._steps.get(name)
        if step is not None:
            step(detail)
        elif name in ("job.done", "job.failed", "job.cancelled", "job.released", "job.lost"):
            self._ended(name.removeprefix("job."), detail)

    # --- answers -----------------------------------------------------------------------------------------

    def _retrieved(self, detail: Detail) -> None:
        started = time.time_ns() - int(detail["seconds"] * _BILLION)
        self._begin(detail["answer_id"], "elm.answer", started, detail, "answer_id", "namespace")
        self._child("retrieve", detail["answer_id"], detail, "memory_id", "memory_namespace", "similarity")

    def _generated(self, detail: Detail) -> None:
        self._child("generate", detail["answer_id"], detail, "source", "tokens", "finished", "memory_id", "failed")
        self._tokens.add(detail.get("tokens", 0), {"elm.source": detail["source"]})

    def _routed(self, detail: Detail) -> None:
        self._child("verify", detail["answer_id"], detail, "route")
        self._answers.add(1, {"elm.route": detail["route"]})
        with self._lock:
            span = self._open.get(detail["answer_id"])
        if span is not None:
            span.set_attribute("elm.route", detail["route"])

    def _noted(self, detail: Detail) -> None:
        self._child("write", detail["answer_id"], detail, "use_id", "job_id")
        self._end(detail["answer_id"], detail, "use_id", "job_id")

    def _not_answered(self, detail: Detail) -> None:
        self._answers.add(1, {"elm.route": "none"})
        self._end(detail["answer_id"], detail, "node", error=detail["reason"].partition(":")[0])

    def _left(self, detail: Detail) -> None:
        self._end(detail["answer_id"], detail)

    # --- jobs --------------------------------------------------------------------------------------------

    def _claimed(self, detail: Detail) -> None:
        self._begin(detail["job_id"], "elm.learn", time.time_ns(), detail, "job_id", "namespace", "attempt")

    def _step(self, detail: Detail) -> None:
        seconds = detail["seconds_rollout"] + detail["seconds_update"]
        kept = ("step", "vote_share", "reward_mean", "loss", "kl", "grad_norm", "tokens")
        self._child("train_step", detail["job_id"], {**detail, "seconds": seconds}, *kept)

    def _train_done(self, detail: Detail) -> None:
        with self._lock:
            self._trained[detail["job_id"]] = time.time_ns()

    def _written(self, detail: Detail) -> None:
        with self._lock:
            began = self._trained.pop(detail["job_id"], None)
        if began is not None:
            seconds = (time.time_ns() - began) / _BILLION
            self._child("write", detail["job_id"], {**detail, "seconds": seconds}, "memory_id")

    def _ended(self, outcome: str, detail: Detail) -> None:
        with self._lock:
            self._trained.pop(detail["job_id"], None)
        self._jobs.add(1, {"elm.outcome": outcome})
        failed = outcome in ("failed", "lost")
        self._end(
            detail["job_id"],
            {**detail, "outcome": outcome},
            *("outcome", "memory_id", "state"),
            error=str(detail.get("reason", outcome)).partition(":")[0] if failed else None,
        )

    # --- spans -------------------------------------------------------------------------------------------

    def _begin(self, run: str, name: str, started: int, detail: Detail, *kept: str) -> None:
        span = self._tracer.start_span(name, start_time=started, attributes=_attributes(detail, kept))
        with self._lock:
            self._open[run] = span
            forgotten = self._open.popitem(last=False)[1] if len(self._open) > MOST_OPEN else None
        if forgotten is not None:
            forgotten.end()

    def _child(self, step: str, run: str, detail: Detail, *kept: str) -> None:
        """A span that ends now, of the step's length, under that of its run; under none if that is forgotten."""
        from opentelemetry.trace import set_span_in_context

        with self._lock:
            parent = self._open.get(run)
        ended = time.time_ns()
        span = self._tracer.start_span(
            f"elm.{step}",
            context=None if parent is None else set_span_in_context(parent),
            start_time=ended - int(detail["seconds"] * _BILLION),
            attributes=_attributes(detail, kept),
        )
        span.end(ended)
        source = {"elm.source": detail["source"]} if "source" in detail else {}
        self._durations.record(detail["seconds"], {"elm.step": step, **source})

    def _end(self, run: str | None, detail: Detail, *kept: str, error: str | None = None) -> None:
        with self._lock:
            span = None if run is None else self._open.pop(run, None)
        if span is None:
            return
        span.set_attributes(_attributes(detail, kept))
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            span.set_status(Status(StatusCode.ERROR, error))
        span.end()


def exporting(endpoint: str, *, every_seconds: float) -> tuple[Telemetry, Callable[[], None]]:
    """Telemetry that is sent to an OTLP collector over HTTP, and what sends the rest and ends it.

    ``endpoint``: the collector's base URL, such as ``http://localhost:4318``. Its headers, if it needs any, come from
    the environment variable OTEL_EXPORTER_OTLP_HEADERS. Raises ``SettingsError`` when a package is missing.
    """
    _need("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    base = endpoint.rstrip("/")
    resource = Resource.create({"service.name": _NAME})
    traces = TracerProvider(resource=resource, shutdown_on_exit=False)
    traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{base}/v1/traces")))
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=f"{base}/v1/metrics"), export_interval_millis=every_seconds * 1000
    )
    meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)

    def close() -> None:
        for provider in (traces, meters):
            provider.shutdown()

    return Telemetry(tracer_provider=traces, meter_provider=meters), close


def _need(*modules: str) -> None:
    try:
        missing = not all(find_spec(name) for name in ("opentelemetry.trace", *modules))
    except ModuleNotFoundError:  # of a parent package
        missing = True
    if missing:
        raise SettingsError("telemetry needs OpenTelemetry: run `pip install 'elm-agent[otel]'`")


def _attributes(detail: Detail, kept: tuple[str, ...]) -> dict[str, Any]:
    return {f"elm.{name}": detail[name] for name in kept if detail.get(name) is not None}
