"""OpenTelemetry: a span for each request, one for each stage of its images, and one for each batch, to which the
spans of the forwards in it are linked. Imported only where traces are asked for; without them nothing of it runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from time import perf_counter_ns
from weakref import WeakKeyDictionary

from opentelemetry import trace
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from app.observability.request_record import RequestRecord
from models.interface.results import Prediction
from models.interface.telemetry import BatchReport

Batches = WeakKeyDictionary[BatchReport, SpanContext]

# Asked for every few seconds by machines.
_UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})

_SERVER_ERRORS = 500
_FLUSH_TIMEOUT_MS = 5000


class Traces:
    """Spans of one application. Not thread-safe: everything is called on the event loop.

    Spans of stages are made when the request has ended, from times that are taken anyway.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("gradless")
        self._propagator = TraceContextTextMapPropagator()
        # The span of a batch is kept for as long as there are requests of it that have not ended.
        self._batches: Batches = WeakKeyDictionary()

    def begin(self, scope: Scope) -> TracedRequest | None:
        """Go on with the trace of the request's traceparent, or begin one; None for what is not worth a trace."""
        if scope["path"] in _UNTRACED:
            return None
        context = self._propagator.extract(scope, getter=_HEADERS)
        span = self._tracer.start_span(scope["method"], context=context, kind=SpanKind.SERVER)
        if span.is_recording():
            span.set_attributes({"http.request.method": scope["method"], "url.path": scope["path"]})
        return TracedRequest(self._tracer, self._batches, span, scope["method"])

    def close(self) -> None:
        """Hand over what is left. Blocks, for some seconds at most."""
        self._provider.force_flush(_FLUSH_TIMEOUT_MS)
        self._provider.shutdown()


class TracedRequest:
    """A request's span, open until `end`."""

    def __init__(self, tracer: Tracer, batches: Batches, span: Span, method: str) -> None:
        self._tracer = tracer
        self._batches = batches
        self._span = span
        self._method = method
        # From perf_counter, which stages are timed by, to the clock of spans.
        self._epoch_ns = time.time_ns() - perf_counter_ns()

    @property
    def trace_id(self) -> str:
        return trace.format_trace_id(self._span.get_span_context().trace_id)

    @property
    def response_header(self) -> str:
        context = self._span.get_span_context()
        return f"00-{self.trace_id}-{trace.format_span_id(context.span_id)}-{context.trace_flags:02x}"

    def end(self, request: RequestRecord, route: str | None, status: int) -> None:
        if self._span.is_recording():
            self._describe(request, route, status)
            self._add_stages(request)
        # With its last stage, however long all who are told of it took.
        self._span.end(None if request.ended_at is None else self._epoch_ns + int(request.ended_at * 1e9))

    def _describe(self, request: RequestRecord, route: str | None, status: int) -> None:
        span = self._span
        span.set_attribute("http.response.status_code", status)
        span.set_attribute("gradless.request_id", request.request_id)
        if route is not None:
            span.update_name(f"{self._method} {route}")
            span.set_attribute("http.route", route)
        if request.model is not None and request.task is not None:
            span.set_attributes(
                {"gradless.model": request.model, "gradless.task": request.task, "gradless.images": request.images}
            )
        if request.problem is not None:
            span.set_attribute("error.type", request.problem)
        if status >= _SERVER_ERRORS:
            span.set_status(Status(StatusCode.ERROR))

    def _add_stages(self, request: RequestRecord) -> None:
        if request.read_seconds is not None:
            self._add("read", request.started_at, request.read_seconds)
        for image in request.predicted:
            self._add_image(image)
        if request.lookup_started_at is not None and request.lookup_seconds is not None:
            self._add("lookup", request.lookup_started_at, request.lookup_seconds)
        if request.answered_at is not None and request.respond_seconds is not None:
            self._add("respond", request.answered_at, request.respond_seconds)

    def _add_image(self, image: Prediction) -> None:
        seconds = image.seconds
        self._add("decode", image.started_at, seconds.decode)
        self._add("queue", image.batch.started_at - seconds.queue, seconds.queue)
        self._add("forward", image.batch.started_at, seconds.forward, links=[Link(self._context_of(image.batch))])

    def _context_of(self, batch: BatchReport) -> SpanContext:
        known = self._batches.get(batch)
        if known is None:
            # In the trace of the first of its requests to end: with a sampler, one of its own could be left out.
            described: dict[str, str | int] = {
                "gradless.model": batch.model,
                "gradless.batch.size": batch.size,
                "gradless.batch.trigger": batch.trigger,
                "gradless.batch.dropped": batch.dropped,
            }
            known = self._batches[batch] = self._add("batch", batch.started_at, batch.forward_seconds, described)
        return known

    def _add(
        self,
        name: str,
        started_at: float,
        seconds: float,
        attributes: Mapping[str, str | int] | None = None,
        links: Sequence[Link] = (),
    ) -> SpanContext:
        """A span that is over, below the request's."""
        begin = self._epoch_ns + int(started_at * 1e9)
        parent = trace.set_span_in_context(self._span)
        span = self._tracer.start_span(name, parent, attributes=attributes, links=links, start_time=begin)
        span.end(begin + int(seconds * 1e9))
        return span.get_span_context()


class _Headers(Getter[Scope]):
    def get(self, carrier: Scope, key: str) -> list[str] | None:
        wanted = key.encode("ascii")
        return [value.decode("latin-1") for name, value in carrier["headers"] if name == wanted] or None

    def keys(self, carrier: Scope) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier["headers"]]


_HEADERS = _Headers()


def exporting_traces(version: str) -> Traces:
    """Traces that go where the OTEL_* variables say, by OTLP over HTTP, from a thread of the exporter's own."""
    # Here, not above: with spans of a test's own there is nothing to send.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    own = Resource({"service.name": "gradless", "service.version": version})
    # What the variables say of the resource comes last and wins.
    provider = TracerProvider(resource=Resource.create().merge(own).merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider)
