"""Unchanged clients of TorchServe, KServe v1, SageMaker, MLflow and Hugging Face get the native answers."""

from __future__ import annotations

import base64
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import requests
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

PAGE = (Path(__file__).parents[2] / "docs/clients.md").read_text()
MODEL = "efficientnet_lite0"
TOLERANCE = 1e-4
# How the first lines of each part of the page are run, and a word of their output.
DOCUMENTED = [
    ("TorchServe", "sh", "jobQueueStatus"),
    ("KServe v1, TensorFlow Serving, Vertex AI", "sh", "analog clock"),
    ("SageMaker, MLflow", "sh", "analog clock"),
    ("Hugging Face", "python", "analog clock"),
]


@pytest.fixture(scope="module")
def native(address: str, clock_png: bytes) -> dict[str, float]:
    """The native answer: five classes, the likeliest first."""
    answer = httpx2.post(f"{address}/v1/classify", content=clock_png, timeout=30).raise_for_status().json()
    return {found["label"]: found["probability"] for found in answer["results"][0]["predictions"]}


def assert_native(answer: dict[str, float], native: dict[str, float]) -> None:
    assert list(answer) == list(native)
    assert answer == pytest.approx(native, abs=TOLERANCE)


@pytest.mark.parametrize(("heading", "language", "word"), DOCUMENTED)
def test_the_lines_of_the_page_work(
    address: str,
    clock_jpeg: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    heading: str,
    language: str,
    word: str,
) -> None:
    (tmp_path / "clock.jpg").write_bytes(clock_jpeg)
    monkeypatch.chdir(tmp_path)
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert blocks
    lines = "\n".join(blocks).replace("http://localhost:8000", address)
    if language == "python":
        exec(compile(lines, "docs/clients.md", "exec"), {})  # noqa: S102 - our own page
        output = capsys.readouterr().out
    else:
        failing = lines.replace("curl ", "curl -sS --fail-with-body ")
        output = subprocess.run(["sh", "-ec", failing], capture_output=True, text=True, check=True).stdout
    assert word in output


def test_requests_gets_the_native_probabilities_from_torchserves_routes(
    address: str, clock_png: bytes, native: dict[str, float]
) -> None:
    url = f"{address}/predictions/{MODEL}"
    for answer in (
        requests.post(url, data=clock_png, timeout=30),
        requests.put(f"{url}/1.0", data=clock_png, timeout=30),
        requests.post(url, files={"data": clock_png}, timeout=30),
    ):
        assert answer.status_code == 200
        assert_native(answer.json(), native)
    assert requests.get(f"{address}/ping", timeout=30).json() == {"status": "Healthy"}


def test_requests_gets_the_native_probabilities_for_instances(
    address: str, clock_png: bytes, clock_jpeg: bytes, native: dict[str, float]
) -> None:
    instances = [{"image": {"b64": base64.b64encode(file).decode()}} for file in (clock_png, clock_jpeg)]
    for path in (f"/v1/models/{MODEL}:predict", "/invocations", f"/predictions/{MODEL}"):
        answer = requests.post(f"{address}{path}", json={"instances": instances}, timeout=30)
        first, second = answer.json()["predictions"]
        assert_native(first, native)
        assert next(iter(second)) == next(iter(native))


def test_hugging_faces_client_classifies_files_and_bytes(
    address: str, clock_png: bytes, tmp_path: Path, native: dict[str, float]
) -> None:
    file = tmp_path / "clock.png"
    file.write_bytes(clock_png)
    for model in (address, f"{address}/hf/{MODEL}"):
        with InferenceClient(model=model) as client:
            found: list[Any] = client.image_classification(str(file))
            assert_native({each.label: each.score for each in found}, native)
            [likeliest] = client.image_classification(clock_png, top_k=1)
            assert likeliest.label == next(iter(native))


def test_hugging_faces_client_extracts_the_native_features(address: str, clock_png: bytes) -> None:
    url = f"{address}/v1/features?normalize=true"
    expected = httpx2.post(url, content=clock_png, timeout=30).json()["results"][0]["features"]
    image = base64.b64encode(clock_png).decode()
    with InferenceClient(model=f"{address}/hf/{MODEL}@features") as client:
        found = client.feature_extraction(image, normalize=True)
    np.testing.assert_allclose(found, [expected], atol=TOLERANCE)


def test_hugging_faces_client_raises_its_own_error(address: str) -> None:
    with InferenceClient(model=f"{address}/hf/nobody") as client, pytest.raises(HfHubHTTPError) as raised:
        client.image_classification(b"image")
    assert raised.value.response.status_code == 404
