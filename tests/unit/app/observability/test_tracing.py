"""Traces: spans of requests, stages and batches, and the links between them."""

from __future__ import annotations

import gc
import logging
import re
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from app.observability.tracing import Traces
from models.interface.errors import DrainingError
from models.interface.results import Answer, Prediction
from models.interface.telemetry import BatchReport, InstanceId, StageSeconds

pytestmark = pytest.mark.anyio

Serve = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]

_TRACE = "0af7651916cd43dd8448eb211c80319c"
_PARENT = "b7ad6b7169203331"


class Kept:
    """Traces with an exporter that keeps spans in memory."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.traces = Traces(provider)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def names(self) -> list[str]:
        return [span.name for span in self._exporter.get_finished_spans()]


@pytest.fixture
def kept() -> Kept:
    return Kept()


def context_of(span: ReadableSpan) -> Any:
    context = span.get_span_context()
    assert context is not None
    return context


def seconds_of(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def in_one_batch(prediction: Callable[..., Prediction], count: int) -> list[Prediction]:
    """Results of one batch, with different times."""
    batch = BatchReport(
        InstanceId("fake", "cpu"), count, "full", started_at=10.0, forward_seconds=0.5, busy_seconds=0.5, dropped=2
    )
    return [
        Prediction(made.classes, made.features, 9.0 + number, StageSeconds(0.25, 0.125 * (number + 1), 0.5), batch)
        for number, made in enumerate(prediction() for _ in range(count))
    ]


async def test_a_request_has_a_span_with_route_status_and_model(serve: Serve, kept: Kept) -> None:
    async with serve({}, traces=kept.traces) as client:
        answer = await client.post("/v1/classify?model=fake", content=b"image")

    (span,) = kept.spans("POST /v1/classify")
    assert span.kind is SpanKind.SERVER
    assert span.attributes == {
        "http.request.method": "POST",
        "url.path": "/v1/classify",
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "gradless.request_id": answer.headers["x-request-id"],
        "gradless.model": "fake",
        "gradless.task": "classify",
        "gradless.images": 1,
    }


async def test_fastapi_creates_no_second_span_if_the_process_has_a_provider(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    async with serve({}) as client:
        await client.post("/v1/classify", content=b"image")
    assert exporter.get_finished_spans() == ()


async def test_stages_are_consecutive_child_spans_with_their_durations(
    serve: Serve, kept: Kept, prediction: Callable[..., Prediction], answer: Callable[..., Answer]
) -> None:
    async def predict(*_arguments: object, **_options: object) -> Answer:
        return answer(*in_one_batch(prediction, 1))

    async with serve({"predict": predict}, traces=kept.traces) as client:
        await client.post("/v1/features", content=b"image")

    (request,) = kept.spans("POST /v1/features")
    stages = {name: kept.spans(name)[0] for name in ("read", "decode", "queue", "forward", "respond")}
    assert {span.parent.span_id for span in stages.values() if span.parent} == {context_of(request).span_id}
    assert seconds_of(stages["decode"]) == pytest.approx(0.25, abs=1e-6)
    assert seconds_of(stages["queue"]) == pytest.approx(0.125, abs=1e-6)
    assert seconds_of(stages["forward"]) == pytest.approx(0.5, abs=1e-6)
    assert stages["queue"].end_time == pytest.approx(stages["forward"].start_time, abs=1000)
    # Real time, unlike the times of the fake runtime.
    assert (stages["forward"].start_time or 0) - (stages["decode"].start_time or 0) == pytest.approx(1e9, abs=1000)
    assert (stages["read"].end_time or 0) <= (stages["respond"].start_time or 0)
    assert request.end_time == pytest.approx(stages["respond"].end_time, abs=1000)


async def test_forwards_link_to_the_single_span_of_their_batch(
    serve: Serve, kept: Kept, prediction: Callable[..., Prediction], answer: Callable[..., Answer]
) -> None:
    batch = in_one_batch(prediction, 3)
    requests = iter((batch[:2], batch[2:]))

    async def predict(*_arguments: object, **_options: object) -> Answer:
        return answer(*next(requests))

    async with serve({"predict": predict}, traces=kept.traces) as client:
        await client.post("/v1/classify", content=b"image")
        await client.post("/v1/classify", content=b"image")

    (span,) = kept.spans("batch")
    assert span.attributes == {
        "gradless.model": "fake",
        "gradless.device": "cpu",
        "gradless.batch.size": 3,
        "gradless.batch.trigger": "full",
        "gradless.batch.dropped": 2,
    }
    assert seconds_of(span) == pytest.approx(0.5, abs=1e-6)
    forwards = kept.spans("forward")
    assert len(forwards) == 3
    assert {context_of(each).trace_id for each in forwards} == {
        context_of(each).trace_id for each in kept.spans("POST /v1/classify")
    }
    assert [[link.context for link in each.links] for each in forwards] == [[context_of(span)]] * 3


async def test_the_span_of_a_batch_is_kept_until_its_last_request_ends(
    serve: Serve, kept: Kept, prediction: Callable[..., Prediction], answer: Callable[..., Answer]
) -> None:
    batches: list[weakref.ref[BatchReport]] = []

    async def predict(*_arguments: object, **_options: object) -> Answer:
        (image,) = in_one_batch(prediction, 1)
        batches.append(weakref.ref(image.batch))
        return answer(image)

    async with serve({"predict": predict}, traces=kept.traces) as client:
        for _ in range(3):
            await client.post("/v1/classify", content=b"image")
        gc.collect()

        assert len(kept.spans("batch")) == 3
        assert [batch() for batch in batches] == [None] * 3


async def test_the_trace_of_a_client_is_continued_and_returned(serve: Serve, kept: Kept) -> None:
    headers = {"traceparent": f"00-{_TRACE}-{_PARENT}-01", "tracestate": "vendor=1"}
    async with serve({}, traces=kept.traces) as client:
        answer = await client.post("/v1/classify", content=b"image", headers=headers)

    (span,) = kept.spans("POST /v1/classify")
    context = context_of(span)
    assert f"{context.trace_id:032x}" == _TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == _PARENT
    assert context.trace_state.get("vendor") == "1"
    assert answer.headers["traceresponse"] == f"00-{_TRACE}-{context.span_id:016x}-01"


@pytest.mark.parametrize("sent", ["", "nonsense", f"00-{'0' * 32}-{_PARENT}-01", f"ff-{_TRACE}-{_PARENT}-01"])
async def test_an_invalid_traceparent_starts_a_new_trace(serve: Serve, kept: Kept, sent: str) -> None:
    async with serve({}, traces=kept.traces) as client:
        answer = await client.post("/v1/classify", content=b"image", headers={"traceparent": sent})

    assert answer.status_code == 200
    (span,) = kept.spans("POST /v1/classify")
    assert span.parent is None


@pytest.mark.parametrize(
    ("error", "status", "problem"),
    [(DrainingError(), 503, "draining"), (RuntimeError("unforeseen"), 500, "internal-error")],
)
async def test_the_span_of_a_server_error_has_error_status(
    serve: Serve, kept: Kept, error: Exception, status: int, problem: str
) -> None:
    async def fail(*_arguments: object, **_options: object) -> Answer:
        raise error

    async with serve({"predict": fail}, traces=kept.traces) as client:
        await client.post("/v1/classify", content=b"image")

    (span,) = kept.spans("POST /v1/classify")
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == status
    assert span.attributes["error.type"] == problem
    assert span.status.status_code is StatusCode.ERROR


async def test_the_span_of_a_client_error_has_no_error_status(serve: Serve, kept: Kept) -> None:
    async with serve({}, traces=kept.traces) as client:
        await client.post("/v1/classify?model=other", content=b"image")
        await client.get("/nothing")

    assert [span.status.status_code for span in kept.spans("POST /v1/classify")] == [StatusCode.UNSET]
    # Without a route the name has no path: clients can send any path.
    assert len(kept.spans("GET")) == 1


async def test_probes_and_scrapes_are_not_traced(serve: Serve, kept: Kept) -> None:
    async with serve({}, traces=kept.traces) as client:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert "traceresponse" not in (await client.get(path)).headers

    assert kept.names() == []


async def test_an_unsampled_trace_creates_no_spans_but_is_returned(serve: Serve) -> None:
    kept = Kept(ParentBased(ALWAYS_OFF))
    async with serve({}, traces=kept.traces) as client:
        answer = await client.post(
            "/v1/classify", content=b"image", headers={"traceparent": f"00-{_TRACE}-{_PARENT}-00"}
        )

    assert kept.names() == []
    assert re.fullmatch(rf"00-{_TRACE}-[0-9a-f]{{16}}-00", answer.headers["traceresponse"])


async def test_a_request_line_has_the_trace_id(serve: Serve, kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gradless.requests")
    async with serve({}, traces=kept.traces) as client:
        await client.post("/v1/classify", content=b"image")

    (span,) = kept.spans("POST /v1/classify")
    trace_ids: Sequence[str] = [vars(record)["trace_id"] for record in caplog.records if record.message == "request"]
    assert trace_ids == [f"{context_of(span).trace_id:032x}"]


async def test_without_tracing_responses_have_no_trace_header(serve: Serve) -> None:
    async with serve() as client:
        answer = await client.post(
            "/v1/classify", content=b"image", headers={"traceparent": f"00-{_TRACE}-{_PARENT}-01"}
        )

    assert "traceresponse" not in answer.headers
