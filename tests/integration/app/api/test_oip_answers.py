"""The Open Inference Protocol over a real model: its answers are those of the native routes, in every form."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.networks.specs import ModelSpec

pytestmark = pytest.mark.anyio

StartOverHttp = Callable[..., AbstractAsyncContextManager[httpx2.AsyncClient]]

_AT = "Inference-Header-Content-Length"
# Those of the tiny model.
_SIDE, _MEAN, _STD = 32, 0.5, 0.5


@pytest.fixture
async def http(over_http: StartOverHttp, tiny: ModelSpec) -> AsyncIterator[httpx2.AsyncClient]:
    async with over_http(tiny) as client:
        yield client


async def _outputs(client: httpx2.AsyncClient, view: str, array: NDArray[Any], datatype: str) -> dict[str, Any]:
    """Send one tensor in binary, and return both outputs by name."""
    stated = {"name": "image", "shape": array.shape, "datatype": datatype}
    outputs = [{"name": "probabilities"}, {"name": "features", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [stated], "outputs": outputs}).encode()
    answer = await client.post(
        f"/v2/models/{view}/infer", content=head + array.tobytes(), headers={_AT: str(len(head))}
    )
    assert answer.status_code == 200, answer.text
    at = int(answer.headers[_AT])
    first, second = json.loads(answer.content[:at])["outputs"]
    features = np.frombuffer(answer.content[at:], "<f4").reshape(second["shape"])
    return {"probabilities": np.reshape(first["data"], first["shape"]), "features": features}


def _padded(*files: bytes) -> NDArray[np.uint8]:
    longest = max(map(len, files)) + 100
    return np.frombuffer(b"".join(file.ljust(longest, b"\0") for file in files), np.uint8).reshape(len(files), -1)


async def test_padded_files_get_the_native_answers_and_are_counted_once(
    http: httpx2.AsyncClient, image_file: Callable[..., bytes]
) -> None:
    files = [image_file(image_format=name) for name in ("PNG", "JPEG", "WEBP")]
    found = await _outputs(http, "tiny", _padded(*files), "UINT8")
    counted = (await http.get("/v2/models/tiny/stats")).json()["model_stats"][0]
    classes = [(await http.post("/v1/classify?top_k=10", content=file)).json()["results"][0] for file in files]
    vectors = [(await http.post("/v1/features", content=file)).json()["results"][0]["features"] for file in files]

    for row, own in zip(found["probabilities"], classes, strict=True):
        for scored in own["predictions"]:
            assert row[scored["index"]] == pytest.approx(scored["probability"], abs=1e-5)
    np.testing.assert_allclose(found["features"], vectors, atol=1e-5)
    durations = counted["inference_stats"]
    assert (counted["inference_count"], durations["success"]["count"], durations["queue"]["count"]) == (3, 1, 3)
    assert durations["compute_infer"]["ns"] > 0


async def test_pixels_of_every_form_get_the_same_answer(http: httpx2.AsyncClient) -> None:
    pixels = np.arange(2 * 3 * _SIDE * _SIDE, dtype=np.uint8).reshape(2, 3, _SIDE, _SIDE)
    normalized = ((pixels / 255 - _MEAN) / _STD).astype("<f4")
    expected = await _outputs(http, "tiny@pixels", pixels, "UINT8")

    for view, array, datatype in (
        ("tiny", np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), "UINT8"),
        ("tiny@pixels", pixels.astype("<i4"), "INT32"),
        ("tiny@pixels", pixels.astype("<f4"), "FP32"),
        ("tiny@tensor", normalized, "FP32"),
        ("tiny@tensor", normalized.astype("<f2"), "FP16"),
    ):
        found = await _outputs(http, view, array, datatype)
        for name in ("probabilities", "features"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


async def test_a_file_of_that_size_and_its_pixels_get_the_same_answer(
    http: httpx2.AsyncClient, image_file: Callable[..., bytes]
) -> None:
    # The tiny model resizes to 36 and crops to 32.
    noise = np.random.default_rng(0).integers(0, 256, (36, 36, 3), np.uint8)
    file = image_file(Image.fromarray(noise))
    of_file = await _outputs(http, "tiny", _padded(file), "UINT8")
    of_pixels = await _outputs(http, "tiny", noise[None, 2:34, 2:34].copy(), "UINT8")

    np.testing.assert_allclose(of_file["features"], of_pixels["features"], atol=1e-5)


async def test_raw_values_in_a_normalized_view_are_refused(http: httpx2.AsyncClient) -> None:
    raw = np.full((1, 3, _SIDE, _SIDE), 200, "<f4")
    head = json.dumps({"inputs": [{"name": "x", "shape": raw.shape, "datatype": "FP32"}]}).encode()
    answer = await http.post(
        "/v2/models/tiny@tensor/infer", content=head + raw.tobytes(), headers={_AT: str(len(head))}
    )

    assert answer.status_code == 400
    assert "image 0: " in answer.json()["error"]
