"""Logs and traces of a real server process, its log formats, and the address that it listens on."""

from __future__ import annotations

import json
import os
import pty
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from models.images.samples import draw, encode

StartServer = Callable[..., Any]


class Collector(ThreadingHTTPServer):
    """Receives OTLP over HTTP, as the OpenTelemetry Collector does at /v1/traces."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _CollectorHandler)
        self.received: list[ExportTraceServiceRequest] = []

    def spans(self) -> dict[str, Any]:
        """Return the last span of each name."""
        return {
            span.name: span
            for request in self.received
            for resource_spans in request.resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        }

    def resource(self) -> dict[str, str]:
        attributes = self.received[0].resource_spans[0].resource.attributes
        return {attribute.key: attribute.value.string_value for attribute in attributes}


class _CollectorHandler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.path == "/v1/traces"
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def test_every_line_is_json_and_every_request_has_one_line_and_one_trace(
    start_server: StartServer, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    server = start_server(GRADLESS_TRACES="true", GRADLESS_BACKEND="eager")
    picture = encode(draw("clock"), "PNG")
    with httpx2.Client(base_url=server.address, timeout=30) as client:
        answered = client.post("/v1/classify", content=picture)
        malformed = client.post(
            "/v1/classify", content=b"--x\r\nno part", headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
        client.get("/readyz")
    with server.connect() as connection:
        connection.sendall(b"this is not HTTP\r\n\r\n")
        refused = connection.recv(65536)
    assert refused.startswith(b"HTTP/1.1 400 ")
    server.process.terminate()
    assert server.exit_status() == 0
    server.end_of_output()

    lines = [json.loads(line) for line in server.log]
    assert all({"timestamp", "level", "logger", "event"} <= set(line) for line in lines)
    assert {"uvicorn.error", "app.server.server", "gradless.requests"} <= {line["logger"] for line in lines}
    first, second, third = [line for line in lines if line["event"] == "request"]
    assert first["request_id"] == answered.headers["x-request-id"]
    assert (first["status"], first["model"], first["batch_size"]) == (200, "efficientnet_lite0", 1)
    assert first["body_bytes"] == len(picture)
    stages = [first[f"{stage}_ms"] for stage in ("read", "decode", "queue", "forward", "respond")]
    assert 0 < sum(stages) < first["total_ms"]
    assert (second["status"], second["problem"]) == (malformed.status_code, "malformed-multipart")
    assert (third["status"], third["problem"]) == (400, "malformed-request")
    assert third["request_id"].encode() in refused

    spans = collector.spans()
    assert {"POST /v1/classify", "read", "decode", "queue", "forward", "respond", "batch"} == set(spans)
    assert spans["forward"].trace_id.hex() == first["trace_id"]
    assert [link.span_id for link in spans["forward"].links] == [spans["batch"].span_id]
    assert collector.resource()["service.name"] == "gradless"
    assert collector.resource()["deployment.environment.name"] == "test"


def test_an_unreachable_collector_fails_no_response_and_does_not_keep_the_process_from_ending(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{unused_port}")
    server = start_server(GRADLESS_TRACES="true", GRADLESS_BACKEND="eager")
    answered = httpx2.post(f"{server.address}/v1/classify", content=encode(draw("clock"), "PNG"), timeout=30)
    assert answered.status_code == 200

    server.process.send_signal(signal.SIGTERM)
    # Not by force, which gives 1.
    assert server.exit_status() == 0


def test_in_a_terminal_the_log_has_columns_and_a_welcome_text(
    server_environment: Callable[..., dict[str, str]], gradless_path: Path, warm_command: Any
) -> None:
    ours, theirs = pty.openpty()
    environment = server_environment(GRADLESS_BACKEND="eager") | {"TERM": "xterm"}
    with os.fdopen(theirs, "wb") as terminal:
        process = warm_command.start([gradless_path, "serve"], environment, terminal)
    with process:
        shown = b""
        # The last line of the welcome text.
        while b"grad-modes?" not in shown:
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    os.close(ours)

    text = shown.decode()
    assert "gradless serves efficientnet_lite0 at http://127.0.0.1:" in text
    assert "serving" in text
    assert '{"event"' not in text


def test_kubernetes_service_links_are_ignored_with_a_log_line(start_server: StartServer) -> None:
    server = start_server(
        GRADLESS_MODELS="null",
        GRADLESS_SERVICE_HOST="10.43.0.1",
        GRADLESS_SERVICE_PORT="80",
        GRADLESS_PORT_80_TCP="tcp://10.43.0.1:80",
    )
    assert httpx2.get(f"{server.address}/readyz").status_code == 200
    lines = [json.loads(line) for line in server.log]
    [ignored] = [line for line in lines if line["event"] == "service links of Kubernetes are ignored"]
    assert ignored["variables"] == ["GRADLESS_PORT_80_TCP", "GRADLESS_SERVICE_HOST", "GRADLESS_SERVICE_PORT"]


def test_an_empty_host_means_localhost(start_server: StartServer) -> None:
    server = start_server(GRADLESS_MODELS="null", GRADLESS_HOST="")
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(server.process.pid).net_connections("tcp")
        if connection.status == "LISTEN"
    ]
    assert server.host == "127.0.0.1"
    assert listening == ["127.0.0.1"]
