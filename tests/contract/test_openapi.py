"""The server responds as the OpenAPI document describes, to any request."""

from __future__ import annotations

import socket
from time import sleep
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 15
# Of requests that differ little.
FEW_EXAMPLES = 5
PROBLEM = "application/problem+json"

CHANGING = [("POST", "/v1/models/{name}"), ("DELETE", "/v1/models/{name}")]
# Generated names match no model. Requests that change a model use given names, below.
WITH_INPUT = [
    ("POST", "/v1/classify"),
    ("POST", "/v1/features"),
    ("POST", "/v1/predict"),
    ("POST", "/v1/search"),
    ("GET", "/v1/search/thumbnails/{row}"),
    *CHANGING,
]
# No request to these is invalid, so none is generated.
ALWAYS_VALID = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]
# A valid request runs up to 51 rounds of 64 images, so requests are given below, not generated.
COSTLY = ("POST", "/debug/grad-modes")

# Of one request, on a machine with other work.
_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def document(address: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx2.get(f"{address}/openapi.json").raise_for_status().json()
    return found


@pytest.fixture(scope="module")
def schema(address: str) -> Any:
    return schemathesis.openapi.from_url(f"{address}/openapi.json")


def test_every_documented_operation_is_tested(document: dict[str, Any]) -> None:
    documented = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert documented == {*WITH_INPUT, *ALWAYS_VALID, COSTLY}


def assert_answers_are_documented(cases: st.SearchStrategy[Any], examples: int) -> None:
    @given(cases)
    @settings(
        max_examples=examples,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def each(case: Any) -> None:
        case.call_and_validate(checks=CHECKS, timeout=_TIMEOUT_S)

    each()


@pytest.mark.parametrize(("method", "path"), WITH_INPUT)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_any_request_gets_a_documented_response(schema: Any, method: str, path: str, mode: GenerationMode) -> None:
    assert_answers_are_documented(schema[path][method].as_strategy(generation_mode=mode), EXAMPLES)


@pytest.mark.parametrize(("method", "path"), ALWAYS_VALID)
def test_operations_without_input_respond_as_documented(schema: Any, method: str, path: str) -> None:
    assert_answers_are_documented(schema[path][method].as_strategy(), FEW_EXAMPLES)


@pytest.mark.parametrize(
    "query",
    [
        {"batch_size": 1, "iterations": 1},
        {"batch_size": 0},
        {"batch_size": 65},
        {"iterations": 51},
        {"iterations": "many"},
        {"model": "none"},
        {"batch_size": 1, "iterations": 1, "arms": "grad,served", "sweep": "1,2"},
        {"sweep": "0"},
        {"arms": "all"},
    ],
)
def test_the_lens_responds_as_documented(schema: Any, query: dict[str, Any]) -> None:
    method, path = COSTLY
    schema[path][method].Case(query=query).call_and_validate(checks=CHECKS, timeout=_TIMEOUT_S)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"batch_size": 1, "iterations": 1, "arms": ["no_grad", "train"]}, 200),
        ({"batch_size": 0}, 422),
        ({"batch": 1}, 422),
        ({"model": "none"}, 404),
    ],
    ids=str,
)
def test_the_lens_responds_to_json_as_documented(schema: Any, body: dict[str, Any], status: int) -> None:
    method, path = COSTLY
    case = schema[path][method].Case(body=body, media_type="application/json")
    assert case.call_and_validate(checks=CHECKS, timeout=_TIMEOUT_S).status_code == status


def test_the_lens_refuses_a_second_comparison_as_documented(address: str, schema: Any) -> None:
    method, path = COSTLY
    url, body = f"{address}{path}", {"batch_size": 1, "iterations": 50}
    short = {"batch_size": 1, "iterations": 1, "arms": ["no_grad"]}
    case = schema[path][method].Case(body=short, media_type="application/json")
    with httpx2.stream("POST", url, json=body, headers={"Accept": "text/event-stream"}) as running:
        next(running.iter_lines())
        assert case.call_and_validate(checks=CHECKS, timeout=_TIMEOUT_S).status_code == 409
    # Wait until the first comparison has ended with its client.
    while case.call_and_validate(checks=CHECKS, timeout=_TIMEOUT_S).status_code == 409:
        sleep(0.1)


def test_the_lens_responds_to_an_image_as_documented(schema: Any, clock_png: bytes) -> None:
    method, path = COSTLY
    query = {"batch_size": 2, "iterations": 1, "arms": "grad"}
    for image, status in ((clock_png, 200), (b"no image", 415)):
        case = schema[path][method].Case(query=query, body=image, media_type="application/octet-stream")
        assert case.call_and_validate(checks=CHECKS, timeout=_TIMEOUT_S).status_code == status


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/v1/classify", {}),
        ("/v1/classify", {"top_k": 1000}),
        ("/v1/features", {}),
        ("/v1/features", {"encoding": "base64"}),
        ("/v1/features", {"normalize": "true"}),
        ("/v1/predict", {"top_k": 2}),
        ("/v1/predict", {"outputs": "features", "encoding": "base64"}),
    ],
)
def test_the_response_to_an_image_has_its_documented_schema(
    schema: Any, clock_png: bytes, path: str, query: dict[str, Any]
) -> None:
    # Generated bodies are hardly ever images, so this test sends a real one.
    case = schema[path]["POST"].Case(query=query, body=clock_png, media_type="application/octet-stream")
    assert case.call_and_validate(checks=CHECKS, timeout=_TIMEOUT_S).status_code == 200


def test_loading_and_unloading_models_responds_as_documented(schema: Any) -> None:
    def status(method: str, name: str, source: str | None = None) -> int:
        sent = {} if source is None else {"body": {"source": source}, "media_type": "application/json"}
        case = schema["/v1/models/{name}"][method].Case(path_parameters={"name": name}, **sent)
        answered: int = case.call_and_validate(checks=CHECKS, timeout=_TIMEOUT_S).status_code
        return answered

    assert status("DELETE", "efficientnet_lite0") == 409
    assert status("POST", "second", "no-such-model") == 422
    assert status("POST", "second", "null") == 201
    assert status("POST", "second") == 200
    assert status("DELETE", "second") == 204
    assert status("DELETE", "second") == 404


def test_every_documented_error_is_a_problem(document: dict[str, Any]) -> None:
    answers = {
        (path, method, status): set(answer.get("content", {}))
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        for status, answer in operation["responses"].items()
        if status >= "400"
    }
    assert answers
    assert {kind for kinds in answers.values() for kind in kinds} == {PROBLEM}
    assert all(answers.values())
    assert document["components"]["schemas"]["Problem"]["required"] == ["type", "title", "status"]


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/features", "/v1/predict", "/v1/search"])
def test_the_inference_routes_document_every_error_status(document: dict[str, Any], path: str) -> None:
    documented = sorted(map(int, document["paths"][path]["post"]["responses"]))
    assert documented == [200, 400, 401, 403, 404, 408, 412, 413, 415, 421, 422, 429, 431, 500, 503, 504]


def test_errors_before_routing_are_documented_for_each_operation(document: dict[str, Any]) -> None:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            described = " ".join(answer["description"] for answer in operation["responses"].values())
            for slug in ("malformed-request", "too-finely-chunked", "slow-body", "headers-too-large"):
                assert described.count(f"urn:gradless:problem:{slug}`") == 1, (path, slug)
            # Probes are answered for any host.
            assert ("421" in operation["responses"]) == (path not in {"/healthz", "/readyz"})
    for slug in ("not-found", "method-not-allowed"):
        assert slug in document["info"]["description"]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("{method} {path} HTTP/1.1\r\nHost: localhost\r\nHost: localhost", 400),
        ("{method} {path} HTTP/1.1\r\nHost: elsewhere.example", 421),
        ("{method} {path} HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 33_000, 431),
    ],
    ids=["malformed", "another host", "a large head"],
)
def test_errors_before_routing_are_as_documented(
    address: str, document: dict[str, Any], head: str, status: int
) -> None:
    url = urlsplit(address)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if str(status) not in operation["responses"]:
                continue
            head_sent = head.format(method=method.upper(), path=path.format(name="a", row=0))
            with socket.create_connection((url.hostname, url.port)) as connection, connection.makefile("rb") as file:
                connection.sendall(f"{head_sent}\r\nConnection: close\r\n\r\n".encode())
                assert file.readline().split()[1] == str(status).encode()
                assert b"content-type: application/problem+json" in file.read().lower()


@pytest.mark.parametrize(
    "accept", ["text/plain", "application/openmetrics-text; version=1.0.0", "application/openmetrics-text;version=x"]
)
def test_the_metrics_have_a_documented_content_type(address: str, document: dict[str, Any], accept: str) -> None:
    answer = httpx2.get(f"{address}/metrics", headers={"Accept": accept})
    documented = document["paths"]["/metrics"]["get"]["responses"]
    assert answer.headers["content-type"].partition(";")[0] in documented[str(answer.status_code)]["content"]
    assert answer.status_code == 200
