"""Other clients (curl, urllib, NumPy) work as their documentation describes."""

from __future__ import annotations

import base64
import json
import subprocess
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import httpx2
import numpy as np
import pytest


@pytest.fixture
def clock_file(tmp_path: Path, clock_jpeg: bytes) -> Path:
    file = tmp_path / "a clock.jpg"
    file.write_bytes(clock_jpeg)
    return file


def curl(*arguments: str) -> Any:
    done = subprocess.run(["curl", "-sS", "--fail-with-body", *arguments], capture_output=True, timeout=60, check=True)
    return json.loads(done.stdout)


def first_labels(answer: Any) -> list[str]:
    return [result["predictions"][0]["label"] for result in answer["results"]]


def test_curl_sends_several_files_as_a_form(address: str, clock_file: Path) -> None:
    answer = curl("-F", f"images=@{clock_file}", "-F", f"images=@{clock_file}", f"{address}/v1/classify")
    assert first_labels(answer) == ["analog clock", "analog clock"]


def test_curl_forms_may_have_any_field_names_and_other_fields(address: str, clock_file: Path) -> None:
    answer = curl("-F", "comment=mine", "-F", f"photo=@{clock_file};filename=ä.jpg", f"{address}/v1/classify")
    assert first_labels(answer) == ["analog clock"]


def test_curl_uploads_a_file(address: str, clock_file: Path) -> None:
    assert first_labels(curl("-T", str(clock_file), "-X", "POST", f"{address}/v1/classify")) == ["analog clock"]


def test_curl_uploads_a_body_of_unknown_length_in_chunks(address: str, clock_file: Path) -> None:
    with clock_file.open("rb") as picture:
        done = subprocess.run(
            ["curl", "-sS", "-T", "-", "-X", "POST", f"{address}/v1/classify"],
            stdin=picture,
            capture_output=True,
            timeout=60,
            check=True,
        )
    assert first_labels(json.loads(done.stdout)) == ["analog clock"]


def test_urllib_needs_no_headers(address: str, clock_jpeg: bytes) -> None:
    with urllib.request.urlopen(f"{address}/v1/classify", clock_jpeg, timeout=30) as answer:  # noqa: S310 - our own
        assert first_labels(json.load(answer)) == ["analog clock"]


def test_urllib_sees_a_problem_as_an_error_with_a_body(address: str) -> None:
    with pytest.raises(HTTPError) as raised:
        urllib.request.urlopen(f"{address}/v1/classify", b"no image", timeout=30)  # noqa: S310 - our own
    with raised.value as error:
        assert (error.code, error.headers["Content-Type"]) == (415, "application/problem+json")
        assert json.load(error)["type"] == "urn:gradless:problem:unsupported-format"


def features(address: str, image: bytes, query: str = "", accept: str = "*/*") -> httpx2.Response:
    url = f"{address}/v1/features{query}"
    return httpx2.post(url, content=image, headers={"Accept": accept}, timeout=30).raise_for_status()


def test_numpy_loads_the_feature_file(address: str, clock_jpeg: bytes) -> None:
    answer = features(address, clock_jpeg, accept="application/x-npy")
    vectors = np.load(BytesIO(answer.content), allow_pickle=False)
    assert (vectors.shape, vectors.dtype) == ((1, 1280), np.dtype("<f4"))
    assert answer.headers["content-type"] == "application/x-npy"


@pytest.mark.parametrize("normalize", ["false", "true"])
def test_the_three_encodings_of_features_are_equal_bit_for_bit(address: str, clock_jpeg: bytes, normalize: str) -> None:
    query = f"?normalize={normalize}"
    listed = features(address, clock_jpeg, query).json()["results"][0]["features"]
    encoded = features(address, clock_jpeg, f"{query}&encoding=base64").json()["results"][0]["features"]
    file = np.load(BytesIO(features(address, clock_jpeg, query, "application/x-npy").content), allow_pickle=False)
    assert base64.b64decode(encoded, validate=True) == np.asarray(listed, "<f4").tobytes() == file[0].tobytes()


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("application/x-npy, application/json;q=0.5", "application/x-npy"),
        ("Application/X-NPY", "application/x-npy"),
        ("application/json, application/x-npy;q=0", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
    ],
)
def test_the_accept_header_selects_the_format_of_features(
    address: str, clock_jpeg: bytes, accept: str, content_type: str
) -> None:
    assert features(address, clock_jpeg, accept=accept).headers["content-type"] == content_type


def test_curl_follows_a_comparison_event_by_event(address: str, clock_file: Path) -> None:
    done = subprocess.run(
        [
            *("curl", "-sSN", "--fail-with-body", "-H", "Accept: text/event-stream", "-T", str(clock_file)),
            *("-X", "POST", f"{address}/debug/grad-modes?batch_size=2&iterations=1&arms=grad,inference_mode"),
        ],
        capture_output=True,
        timeout=60,
        check=True,
        text=True,
    )
    events = [dict(line.split(": ", 1) for line in block.splitlines()) for block in done.stdout.split("\n\n") if block]
    *progress, report = events
    assert {event["event"] for event in progress} == {"progress"}
    steps = [json.loads(event["data"]) for event in progress]
    assert [step["done"] for step in steps] == list(range(len(steps)))
    assert report["event"] == "report"
    result = json.loads(report["data"])
    assert result["input"] == "the uploaded image"
    # The network classifies the drawn clock correctly in every mode.
    assert [arm["top1_agreement"] for arm in result["arms"]] == [1, 1]
