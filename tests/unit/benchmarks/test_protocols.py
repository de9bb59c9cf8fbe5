"""What a protocol costs: the same picture in every request, ratios within a round."""

from __future__ import annotations

import json
from base64 import b64decode

import pytest

pytest.importorskip("google.protobuf")

from benchmarks import protocols
from benchmarks.load import Loaded

FILE = b"\xff\xd8 a JPEG \xff\xd9"


def loaded(rate: float, server_cpu_ms: float) -> Loaded:
    report = {"steady_per_second": rate, "succeeded": 1000, "p50_ms": 1.0, "p99_ms": 2.0}
    return Loaded(report, client_cpu_share=0.1, server_cpu_share=0.5, server_cpu_seconds=server_cpu_ms)


FOUND = {
    "/v1/classify": [loaded(100, 2), loaded(1000, 2)],
    "OIP, gRPC": [loaded(80, 3), loaded(500, 4)],
}


def test_a_request_of_every_protocol_has_the_same_file() -> None:
    bodies = {request.name: request.body("null", FILE) for request in protocols.REQUESTS}
    of_oip, of_openai = (json.loads(bodies[name]) for name in ("OIP, JSON with base64", "OpenAI embeddings, base64"))
    [message] = protocols.INFER.request.FromString(bodies["OIP, gRPC"]).raw_input_contents
    binary = bodies["OIP, binary BYTES"]
    head = json.loads(binary[: protocols.HEAD_BYTES])

    assert b64decode(of_oip["inputs"][0]["data"][0]) == b64decode(of_openai["input"][0]) == FILE
    assert message == binary[protocols.HEAD_BYTES :] == len(FILE).to_bytes(4, "little") + FILE
    assert head["inputs"][0]["parameters"]["binary_data_size"] == len(message)


def test_a_ratio_is_of_the_same_round() -> None:
    [_, row] = protocols.rows(FOUND)

    assert [row[3], row[7]] == ["0.65 (0.50–0.80)", "1.75 (1.50–2.00)"]  # noqa: RUF001 - ranges
