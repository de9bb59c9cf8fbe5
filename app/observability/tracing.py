"""OpenTelemetry traces: one span per request, per stage of its images, and per batch; spans of forwards link to the
span of their batch. Imported only if GRADLESS_TRACES is set."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from time import perf_counter_ns
from weakref import WeakKeyDictionary

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from app.http.hosts import PROBES
from app.observability.request_record import RequestRecord
from models.interface.results import Prediction
from models.interface.telemetry import BatchReport

Batches = WeakKeyDictionary[BatchReport, SpanContext]

# Probes and scrapers request these every few seconds.
_UNTRACED = PROBES | {"/metrics"}

_SERVER_ERRORS = 500
_FLUSH_TIMEOUT_MS = 5000


class Traces:
    """Creates the spans of one application. Not thread-safe: event loop only.

    Spans of stages are created when the request has ended, from the times in its record.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("gradless")
        self._propagator = TraceContextTextMapPropagator()
        # Weak keys: the span of a batch is kept until the last of its requests has ended.
        self._batches: Batches = WeakKeyDictionary()

    def begin(self, scope: Scope) -> RequestTrace | None:
        """Continue the trace of the traceparent header or start one; None for paths that are not traced."""
        if scope["path"] in _UNTRACED:
            return None
        headers = scope["headers"]
        carrier = {
            field: [value.decode("latin-1") for name, value in headers if name == field.encode()]
            for field in self._propagator.fields
        }
        context = self._propagator.extract(carrier)
        span = self._tracer.start_span(scope["method"], context=context, kind=SpanKind.SERVER)
        if span.is_recording():
            span.set_attributes({"http.request.method": scope["method"], "url.path": scope["path"]})
        return RequestTrace(self._tracer, self._batches, span, scope["method"])

    def close(self) -> None:
        """Export the remaining spans. Blocks for a few seconds at most."""
        self._provider.force_flush(_FLUSH_TIMEOUT_MS)
        self._provider.shutdown()


class RequestTrace:
    """The server span of a request, open until `end`. `trace_id` is 32 hex digits; `response_header` is the value of
    the header `traceresponse` (W3C Trace Context, level 2)."""

    def __init__(self, tracer: Tracer, batches: Batches, span: Span, method: str) -> None:
        self._tracer = tracer
        self._batches = batches
        self._span = span
        self._method = method
        # Added to perf_counter times to get the Unix time that spans use.
        self._epoch_ns = time.time_ns() - perf_counter_ns()

    @property
    def trace_id(self) -> str:
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    @property
    def response_header(self) -> str:
        context = self._span.get_span_context()
        return f"00-{self.trace_id}-{trace.format_span_id(context.span_id)}-{context.trace_flags:02x}"

    def end(self, record: RequestRecord, route: str | None, status: int) -> None:
        if self._span.is_recording():
            self._describe(record, route, status)
            self._add_stages(record)
        # The end of the last stage, without the time that metrics and log took since.
        self._span.end(None if record.ended_at is None else self._epoch_ns + int(record.ended_at * 1e9))

    def _describe(self, record: RequestRecord, route: str | None, status: int) -> None:
        span = self._span
        span.set_attribute("http.response.status_code", status)
        span.set_attribute("gradless.request_id", record.request_id)
        if route is not None:
            span.update_name(f"{self._method} {route}")
            span.set_attribute("http.route", route)
        if record.model is not None and record.task is not None:
            span.set_attributes(
                {"gradless.model": record.model, "gradless.task": record.task, "gradless.images": record.images}
            )
        if record.problem is not None:
            span.set_attribute("error.type", record.problem)
        if status >= _SERVER_ERRORS:
            span.set_status(Status(StatusCode.ERROR))

    def _add_stages(self, record: RequestRecord) -> None:
        if record.read_seconds is not None:
            self._add("read", record.started_at, record.read_seconds)
        for image in record.predictions:
            self._add_image(image)
        if record.lookup_started_at is not None and record.lookup_seconds is not None:
            self._add("lookup", record.lookup_started_at, record.lookup_seconds)
        if record.results_at is not None and record.respond_seconds is not None:
            self._add("respond", record.results_at, record.respond_seconds)

    def _add_image(self, image: Prediction) -> None:
        seconds = image.seconds
        self._add("decode", image.started_at, seconds.decode)
        self._add("queue", image.batch.started_at - seconds.queue, seconds.queue)
        self._add("forward", image.batch.started_at, seconds.forward, links=[Link(self._context_of(image.batch))])

    def _context_of(self, batch: BatchReport) -> SpanContext:
        context = self._batches.get(batch)
        if context is None:
            # In the trace of its first request that ends: a sampler could drop a trace of its own.
            attributes: dict[str, str | int] = {
                "gradless.model": batch.instance.model,
                "gradless.device": batch.instance.device,
                "gradless.batch.size": batch.size,
                "gradless.batch.trigger": batch.trigger,
                "gradless.batch.dropped": batch.dropped,
            }
            context = self._batches[batch] = self._add("batch", batch.started_at, batch.forward_seconds, attributes)
        return context

    def _add(
        self,
        name: str,
        started_at: float,
        seconds: float,
        attributes: Mapping[str, str | int] | None = None,
        links: Sequence[Link] = (),
    ) -> SpanContext:
        """Add a span that has already ended, as a child of the request's."""
        start_ns = self._epoch_ns + int(started_at * 1e9)
        parent = trace.set_span_in_context(self._span)
        span = self._tracer.start_span(name, parent, attributes=attributes, links=links, start_time=start_ns)
        span.end(start_ns + int(seconds * 1e9))
        return span.get_span_context()


def exporting_traces(version: str) -> Traces:
    """Return traces that the SDK's thread exports by OTLP over HTTP, as the OTEL_* variables configure it."""
    # Imported late: tests use an exporter of their own.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    own = Resource({"service.name": "gradless", "service.version": version})
    # Merged last, so that the OTEL_* variables win.
    provider = TracerProvider(resource=Resource.create().merge(own).merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider)
